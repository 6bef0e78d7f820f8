//! The little of connection URLs that the tools need: put another database or another host into one.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'-').remove(b'.').remove(b'~');

/// `text` as a part of a URL: also the path of a Unix socket in the place of a host.
pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

/// `url` with another database.
pub(super) fn with_database(url: &str, database: &str) -> String {
    let (head, host, tail) = split(url);
    let query = tail.find('?').map_or("", |at| &tail[at..]);
    format!("{head}{host}/{}{query}", encode(database))
}

/// `url` with another host and port.
pub(super) fn with_host(url: &str, host: &str) -> String {
    let (head, _, tail) = split(url);
    format!("{head}{host}{tail}")
}

/// Up to the host, the host with its port, from the slash or question mark after it on.
fn split(url: &str) -> (&str, &str, &str) {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?']).map_or(url.len(), |at| start + at);
    let host = url[start..end].rfind('@').map_or(start, |at| start + at + 1);
    (&url[..host], &url[host..end], &url[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_keeps_everything_but_what_is_replaced() {
        let url = "postgres://me:p%40ss@%2Frun%2Fpg:5433/one?application_name=a/b";
        assert_eq!(with_database(url, "t 2"), "postgres://me:p%40ss@%2Frun%2Fpg:5433/t%202?application_name=a/b");
        assert_eq!(with_host(url, "127.0.0.1:9"), "postgres://me:p%40ss@127.0.0.1:9/one?application_name=a/b");
        assert_eq!(with_host("postgres://localhost", "h:1"), "postgres://h:1");
        assert_eq!(
            with_database("postgres://localhost?sslmode=disable", "x"),
            "postgres://localhost/x?sslmode=disable"
        );
    }
}
