//! Statements and plans as texts that can be told and compared.

use std::collections::BTreeSet;

use diesel::pg::Pg;
use diesel::{QueryDsl, SelectableHelper, debug_query};
use t2m_db::files::Video;
use t2m_db::jobs::Job;
use t2m_db::schema;
use t2m_db::users::User;

/// A statement as diesel sent it, a clause a line, with the columns of a row under its name.
pub(crate) fn readable(statement: &str) -> String {
    let mut sql = statement.split(" -- binds: ").next().unwrap().replace('"', "");
    let columns =
        |select: String| select.replace('"', "").replacen("SELECT ", "", 1).split(" FROM").next().unwrap().to_owned();
    let rows = [
        ("{User}", debug_query::<Pg, _>(&schema::users::table.select(User::as_select())).to_string()),
        ("{Job}", debug_query::<Pg, _>(&schema::jobs::table.select(Job::as_select())).to_string()),
        ("{File}", debug_query::<Pg, _>(&schema::file_metadata::table.select(Video::as_select())).to_string()),
    ];
    for (name, select) in rows {
        sql = sql.replace(&columns(select), name);
    }
    for clause in ["FROM", "WHERE", "SET", "VALUES", "UNION ALL", "ORDER BY", "ON CONFLICT", "RETURNING"] {
        sql = sql.replace(&format!(" {clause} "), &format!("\n    {clause} "));
    }
    sql = sql.replace("DISTINCT\n    FROM", "DISTINCT FROM");
    // EXISTS asks for no column.
    let mut parts = sql.split("EXISTS (SELECT ");
    let first = parts.next().unwrap_or_default().to_owned();
    let rest = parts.map(|part| format!("EXISTS (SELECT{}", &part[part.find("\n    FROM").unwrap()..]));
    format!("  {first}{}", rest.collect::<String>())
}

/// The indexes that a plan goes by, the tables that it reads whole, and whether it sorts.
pub(crate) fn paths(plan: &str) -> String {
    let path = |line: &str| {
        let node = line.trim_start().trim_start_matches("->").trim();
        let by = [" using ", "Bitmap Index Scan on ", "Conflict Arbiter Indexes: "];
        let index = by.iter().find_map(|by| node.split_once(by)?.1.split_whitespace().next());
        let whole = node.starts_with("Seq Scan on ") || node.starts_with("Parallel Seq Scan on ");
        index.map(str::to_owned).or_else(|| (whole || node == "Sort").then(|| node.to_lowercase()))
    };
    let paths = plan.lines().filter_map(path).collect::<BTreeSet<_>>();
    if paths.is_empty() { String::new() } else { format!("  -- {}\n", Vec::from_iter(paths).join(", ")) }
}

/// The values in diesel's list of binds: commas inside of brackets and quotes do not count.
pub(crate) fn split(binds: &str) -> Vec<String> {
    let (mut parts, mut part, mut depth, mut quoted, mut escaped) = (Vec::new(), String::new(), 0, false, false);
    for letter in binds[1..binds.len() - 1].chars() {
        match letter {
            '"' if !escaped => quoted = !quoted,
            '(' | '[' | '{' if !quoted => depth += 1,
            ')' | ']' | '}' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                parts.push(std::mem::take(&mut part).trim().to_owned());
                continue;
            }
            _ => {}
        }
        escaped = letter == '\\' && !escaped;
        part.push(letter);
    }
    if !part.trim().is_empty() {
        parts.push(part.trim().to_owned());
    }
    parts
}
