//! What a statement's text says about the session it leaves behind.
//!
//! Together with the command tags on the wire this decides whether a connection is clean at check-in. A word inside a
//! literal or a comment is taken for the real thing: that costs one needless reset, never a leak. What neither text
//! nor tag can show is a stored function that sets or locks; `SessionReset::Always` closes that.

use std::ops::BitOrAssign;

/// What a text does to its session beyond the transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    bits: u8,
    /// `SET LOCAL`, `SET TRANSACTION`: their tag is `SET`, but they end with the transaction.
    pub(crate) local_sets: u8,
}

impl Effects {
    pub(crate) const ADVISORY_LOCK: u8 = 1;
    pub(crate) const SET_CONFIG: u8 = 2;
    pub(crate) const TEMPORARY: u8 = 4;
    pub(crate) const HOLD: u8 = 8;
    /// `COMMIT AND CHAIN` or `ROLLBACK AND CHAIN`: the status byte never shows that the transaction ended.
    pub(crate) const CHAIN: u8 = 16;
    /// A statement of it may end the transaction, and so store what came before.
    pub(crate) const ENDS: u8 = 32;
    /// More than one statement; or a procedure or block, which outside of a transaction may begin and end its own.
    pub(crate) const MANY: u8 = 64;
    /// A block whose tag is `DO`, whatever it does: this one may set, listen or prepare.
    pub(crate) const BLOCK: u8 = 128;

    /// Reads `sql` word by word.
    pub(crate) fn of(sql: &str) -> Self {
        let sql = without_leading_comments(sql);
        let mut effects = Self::default();
        let (mut before, mut creating, mut ending, mut block) = (&b""[..], false, false, false);
        for word in sql.as_bytes().split(|byte| !IN_WORD[usize::from(*byte)]).filter(|word| !word.is_empty()) {
            match word.len() {
                6 if word.eq_ignore_ascii_case(b"create") => creating = true,
                4 if word.eq_ignore_ascii_case(b"into") => creating = true,
                4 if creating && word.eq_ignore_ascii_case(b"temp") => effects.bits |= Self::TEMPORARY,
                7 if creating && word.eq_ignore_ascii_case(b"pg_temp") => effects.bits |= Self::TEMPORARY,
                9 if creating && word.eq_ignore_ascii_case(b"temporary") => effects.bits |= Self::TEMPORARY,
                4 if word.eq_ignore_ascii_case(b"hold") => effects.bits |= Self::HOLD,
                5 if word.eq_ignore_ascii_case(b"chain") && before.eq_ignore_ascii_case(b"and") => {
                    effects.bits |= Self::CHAIN;
                }
                10 if word.eq_ignore_ascii_case(b"set_config") => effects.bits |= Self::SET_CONFIG,
                4 if before.is_empty() && word.eq_ignore_ascii_case(b"call") => effects.bits |= Self::MANY,
                2 if word.eq_ignore_ascii_case(b"do") && opens_a_block(sql, word) => {
                    effects.bits |= Self::MANY;
                    block = true;
                }
                3..=8 if block && CHANGES.iter().any(|change| word.eq_ignore_ascii_case(change)) => {
                    effects.bits |= Self::BLOCK;
                }
                3..=8 if ENDINGS.iter().any(|ends| word.eq_ignore_ascii_case(ends)) => {
                    ending = true;
                    if before.is_empty() {
                        effects.bits |= Self::ENDS;
                    }
                }
                16.. if starts_with(word, b"pg_advisory_lock") || starts_with(word, b"pg_try_advisory_lock") => {
                    effects.bits |= Self::ADVISORY_LOCK;
                }
                _ => {}
            }
            before = word;
        }
        let many = sql.trim_end_matches([';', ' ', '\n']).contains(';');
        // In a single statement it is the first word, or part of something else, as in CASE .. END.
        if many {
            effects.bits |= if ending { Self::ENDS | Self::MANY } else { Self::MANY };
        }
        effects.local_sets = local_sets(sql, many);
        effects
    }

    /// As [`of`](Self::of), without what is counted: for texts that only the wire sees.
    pub(crate) fn bits_of(sql: &str) -> u8 {
        Self::of(sql).bits
    }

    pub(crate) fn has(self, effect: u8) -> bool {
        self.bits & effect != 0
    }

    /// These, and what `bits` says.
    pub(crate) fn and(self, bits: u8) -> Self {
        Self { bits: self.bits | bits, ..self }
    }
}

impl BitOrAssign for Effects {
    fn bitor_assign(&mut self, other: Self) {
        self.bits |= other.bits;
        self.local_sets = self.local_sets.saturating_add(other.local_sets);
    }
}

/// By byte: a table, since every statement without a fixed text is read.
const IN_WORD: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric() || byte == b'_';
        byte += 1;
    }
    table
};

/// First words of what ends a transaction.
const ENDINGS: [&[u8]; 5] = [b"commit", b"end", b"prepare", b"rollback", b"abort"];

/// Words by which a block may change its session.
const CHANGES: [&[u8]; 4] = [b"set", b"listen", b"load", b"execute"];

/// A tool may have put one in front.
fn without_leading_comments(mut sql: &str) -> &str {
    loop {
        sql = sql.trim_start();
        let end = match sql.as_bytes() {
            [b'-', b'-', ..] => sql.find('\n'),
            [b'/', b'*', ..] => sql.find("*/").map(|at| at + 2),
            _ => return sql,
        };
        let Some(end) = end else { return sql };
        sql = &sql[end..];
    }
}

/// `DO $$ .. $$`, `DO 'text'` or `DO LANGUAGE ..`, and not that of ON CONFLICT. `word` is a part of `sql`.
fn opens_a_block(sql: &str, word: &[u8]) -> bool {
    let end = word.as_ptr().addr() + word.len() - sql.as_ptr().addr();
    let rest = sql[end..].trim_start().as_bytes();
    matches!(rest, [b'$' | b'\'' | b'l' | b'L', ..])
}

/// Those that begin a statement. Where it cannot be told what is a literal only the first statement counts: one too few costs
/// a needless reset, one too many a leak.
fn local_sets(sql: &str, many: bool) -> u8 {
    let is_local = |statement: &str| {
        let mut words = statement.split_ascii_whitespace();
        words.next().is_some_and(|word| word.eq_ignore_ascii_case("set"))
            && words
                .next()
                .is_some_and(|word| ["local", "transaction"].iter().any(|local| word.eq_ignore_ascii_case(local)))
    };
    if !many || sql.contains(['$', '\\']) || sql.contains("--") || sql.contains("/*") {
        return u8::from(is_local(sql));
    }
    let mut quote = None;
    let statements = sql.split(|character| match (quote, character) {
        (None, ';') => true,
        (None, '\'' | '"') => {
            quote = Some(character);
            false
        }
        (Some(open), _) if open == character => {
            quote = None;
            false
        }
        _ => false,
    });
    u8::try_from(statements.filter(|statement| is_local(statement)).count()).unwrap_or(u8::MAX)
}

fn starts_with(word: &[u8], start: &[u8]) -> bool {
    word.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_changes_are_seen_and_transaction_local_ones_are_not() {
        for sql in ["select PG_Advisory_Lock(1)", "SELECT pg_try_advisory_lock_shared(1, 2)"] {
            assert!(Effects::of(sql).has(Effects::ADVISORY_LOCK), "{sql}");
        }
        assert!(!Effects::of("select pg_advisory_xact_lock(1)").has(Effects::ADVISORY_LOCK));
        assert!(Effects::of("select * into TEMP x from y").has(Effects::TEMPORARY));
        assert!(!Effects::of("select temperature, temp from pg_temp.y").has(Effects::TEMPORARY));
        assert!(Effects::of("DO $$ BEGIN EXECUTE 'PREPARE a AS SELECT 1'; END $$").has(Effects::BLOCK));
        assert!(!Effects::of("INSERT INTO a VALUES (1) ON CONFLICT DO UPDATE SET b = 2").has(Effects::BLOCK));
        for (sql, sets) in [
            ("SET LOCAL a = 1; set  transaction read only; SET b = 2", 2),
            ("/* by */ SET LOCAL a = '$'", 1),
            ("SET LOCAL a = 'x; SET LOCAL b'; SET c = 1", 1),
            ("UPDATE a SET \"local\" = 1", 0),
            ("SELECT $$; SET LOCAL $$; SET b = 1", 0),
        ] {
            assert_eq!(Effects::of(sql).local_sets, sets, "{sql}");
        }
        assert!(Effects::of("rollback and chain").has(Effects::CHAIN));
    }

    #[test]
    fn what_may_hold_a_transaction_of_its_own_is_seen() {
        for sql in
            ["BEGIN; SELECT 1; COMMIT", "SET TRANSACTION READ WRITE; DELETE FROM a", "call p()", "DO $$ BEGIN END $$"]
        {
            assert!(Effects::of(sql).has(Effects::MANY), "{sql}");
        }
        for sql in ["SELECT 1;", "WITH a AS (SELECT 1) SELECT do, call FROM a"] {
            assert!(!Effects::of(sql).has(Effects::MANY), "{sql}");
        }
    }

    #[test]
    fn what_may_end_a_transaction_is_seen() {
        for sql in [
            "COMMIT",
            "/* by */ -- a\n COMMIT",
            "select 1; end;",
            "INSERT INTO a VALUES (1); prepare transaction 'x'",
            " Abort ",
        ] {
            assert!(Effects::of(sql).has(Effects::ENDS), "{sql}");
        }
        for sql in ["SELECT CASE WHEN a THEN 1 END;", "UPDATE a SET commit = 1", "SELECT 1; SELECT 2"] {
            assert!(!Effects::of(sql).has(Effects::ENDS), "{sql}");
        }
    }
}
