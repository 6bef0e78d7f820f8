use proptest::prelude::*;

use super::*;

fn read(url: &str) -> Config {
    parse(url).unwrap_or_else(|error| panic!("{url}: {error}"))
}

fn refused(url: &str) -> String {
    match parse(url) {
        Ok(config) => panic!("{url} was read as {config:?}"),
        Err(error) => error.to_string(),
    }
}

fn places(url: &str) -> Vec<String> {
    read(url).target.places.iter().map(ToString::to_string).collect()
}

#[test]
fn a_plain_url_is_read() {
    let target = read("postgresql://app:s%40cret@db.internal:5433/t2m").target;
    assert_eq!(target.user.as_deref(), Some("app"));
    assert_eq!(target.password.unwrap().expose(), b"s@cret");
    assert_eq!(target.database.as_deref(), Some("t2m"));
    assert_eq!(target.places, [Place { host: Host::Tcp { name: "db.internal".into(), addr: None }, port: 5433 }]);
}

#[test]
fn what_is_not_there_is_not_set() {
    for url in ["postgres://h", "postgres://h/", "postgres://@h", "postgres://:@h/?", " postgres://h?&\n"] {
        let Target { user, password, database, options, .. } = read(url).target;
        assert!(user.is_none() && password.is_none() && database.is_none() && options.is_none(), "{url}");
    }
}

#[test]
fn hosts_are_a_list() {
    assert_eq!(places("postgres://u@h1:1,h2,[::1]:3,[fd00::2]/d"), ["h1:1", "h2:5432", "[::1]:3", "[fd00::2]:5432"]);
    assert_eq!(places("postgres:///d?host=h1,h2&port=1,2"), ["h1:1", "h2:2"]);
    assert_eq!(places("postgres:///d?host=h1,h2&port=7"), ["h1:7", "h2:7"]);
    assert_eq!(places("postgres:///d?hostaddr=10.0.0.1,fd00::1"), ["10.0.0.1:5432", "[fd00::1]:5432"]);
    let named = read("postgres://h:1/d?hostaddr=10.0.0.1").target.places;
    assert_eq!(named[0].host, Host::Tcp { name: "h".into(), addr: Some([10, 0, 0, 1].into()) });
}

#[test]
fn a_path_is_a_socket_directory() {
    assert_eq!(places("postgres://u@%2Frun%2Fpg/d"), ["/run/pg/.s.PGSQL.5432"]);
    assert_eq!(places("postgres://u@%2Frun%2Fpg:7,h/d"), ["/run/pg/.s.PGSQL.7", "h:5432"]);
    assert_eq!(places("postgres:///d?host=/run/pg"), ["/run/pg/.s.PGSQL.5432"]);
}

#[test]
fn libpq_parameters_are_read() {
    let config = read(
        "postgres://h?sslmode=verify-ca&sslrootcert=/ca.pem&sslcert=c.pem&sslkey=k.pem&sslnegotiation=direct\
         &channel_binding=require&target_session_attrs=read-only&load_balance_hosts=random\
         &options=-c%20work_mem%3D8MB&application_name=shop&connect_timeout=7&tcp_user_timeout=1500\
         &keepalives_idle=60&keepalives_interval=5&keepalives_count=2&user=u&password=p%26q&dbname=d",
    );
    let target = config.target;
    assert_eq!(target.trust.mode(), SslMode::VerifyCa);
    assert_eq!(target.trust.roots, Some(RootCert::File("/ca.pem".into())));
    assert_eq!((target.trust.cert, target.trust.key), (Some("c.pem".into()), Some("k.pem".into())));
    assert!(target.direct_tls && target.shuffle);
    assert_eq!(target.channel_binding, ChannelBinding::Require);
    assert_eq!(target.session_attrs, TargetSessionAttrs::Standby);
    assert_eq!(target.options.as_deref(), Some("-c work_mem=8MB"));
    assert_eq!(config.application_name, "shop");
    assert_eq!(config.connect_timeout, Duration::from_secs(7));
    assert_eq!(config.tcp_user_timeout, Some(Duration::from_millis(1_500)));
    let span = Duration::from_secs;
    assert_eq!(target.keepalive, Some(Keepalive { idle: span(60), interval: span(5), count: 2 }));
    assert_eq!((target.user.as_deref(), target.database.as_deref()), (Some("u"), Some("d")));
    assert_eq!(target.password.unwrap().expose(), b"p&q");
}

#[test]
fn what_can_be_off_is() {
    let config = read("postgres://h?tcp_user_timeout=0&keepalives=0&keepalives_idle=5");
    assert_eq!((config.tcp_user_timeout, config.target.keepalive), (None, None));
}

#[test]
fn the_systems_roots_make_verify_full_the_default() {
    assert_eq!(read("postgres://h").target.trust.mode(), SslMode::Prefer);
    assert_eq!(read("postgres://h?sslrootcert=/ca").target.trust.mode(), SslMode::Prefer);
    assert_eq!(read("postgres://h?sslrootcert=system").target.trust.mode(), SslMode::VerifyFull);
}

#[test]
fn what_is_wrong_is_told() {
    let cases = [
        ("mysql://h/d", "it does not begin with postgres:// or postgresql://"),
        ("host=h user=u", "it does not begin with"),
        ("postgres:///d", "it names no host"),
        ("postgres://h1,,h2/d", "host 2 is empty"),
        ("postgres://u:p@h:54x/d", "what follows host 1 is not a port number"),
        ("postgres://u:p@h:0/d", "what follows host 1 is not a port number"),
        ("postgres://h,[::1/d", "host 2 has a `[` without its `]`"),
        ("postgres://u:p@ss@h/d", "there is an `@` that is not the one before the host; write it as %40"),
        ("postgres://u:p/ss@h/d", "there is an `@` that is not the one before the host"),
        ("postgres://u:p%zz@h/d", "the password has a `%` without two hexadecimal digits; write it as %25"),
        ("postgres://u:p%0@h/d", "the password has a `%`"),
        ("postgres://u%00@h/d", "the user has a zero byte"),
        ("postgres://u%ff@h/d", "the user is not UTF-8"),
        ("postgres://h?sslmode", "parameter 1 has no `=`"),
        ("postgres://h?user=u&ssl_mode=require", "parameter 2 is unknown, the closest known one is `sslmode`"),
        ("postgres://h1,h2?hostaddr=10.0.0.1", "`hostaddr` has not as many addresses as there are hosts"),
        ("postgres://h1,h2?port=1,2,3", "`port` has not as many ports as there are hosts"),
    ];
    for (url, said) in cases {
        let error = refused(url);
        assert!(error.starts_with("setting `url` is malformed (") && error.contains(said), "{url}: {error}");
    }
}

#[test]
fn a_parameter_with_an_unknown_value_names_the_known_ones() {
    assert_eq!(
        refused("postgres://h?sslmode=verifyfull"),
        "setting `sslmode` is something else in the URL, allowed is one of disable, prefer, require, verify-ca, verify-full"
    );
    assert!(refused("postgres://h?connect_timeout=0").contains("a number of seconds above 0"));
    assert!(refused("postgres://h?hostaddr=ten").contains("numeric addresses, separated by commas"));
    assert!(refused("postgres://h?keepalives=yes").contains("one of 0, 1"));
}

/// No word of `secret` in what a developer or a log could see.
fn silent(outcome: &Result<Config>, secret: &str) -> std::result::Result<(), TestCaseError> {
    let seen = match outcome {
        Ok(config) => format!("{config:?} {config:#?}"),
        Err(error) => format!("{error} {error:?} {error:#?}"),
    };
    let ours = ["sslmode", "&sslmode=", "password", "&password="];
    let words = secret.split(|c: char| !c.is_alphanumeric()).chain([secret]);
    for word in words.filter(|word| word.chars().count() >= 5 && !ours.contains(word)) {
        prop_assert!(!seen.contains(word), "`{word}` is in {seen}");
    }
    Ok(())
}

/// Passwords with all that a URL could stumble on, in words long enough to be recognised.
fn password() -> impl Strategy<Value = String> {
    let word = "[A-Z]{3}[0-9]{3,6}[A-Z]{2}|\\PC{0,9}";
    let mark = "[@:/?#%&=,\\[\\]+ ']|%4|%zz|%00|%40|&sslmode=|&password=|\\?host=|://";
    prop::collection::vec((word, mark), 1..5)
        .prop_map(|pieces| pieces.into_iter().flat_map(|(word, mark)| [word, mark]).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_password_is_ever_shown(secret in password(), rest in "(/[a-z]{0,3})?(\\?[a-z]{0,3}=?[a-z]{0,3})?") {
        silent(&parse(&format!("postgres://user:{secret}@host{rest}")), &secret)?;
        silent(&parse(&format!("postgres://user:{secret}@h1:1,h2:2{rest}")), &secret)?;
        silent(&parse(&format!("postgres://:{secret}@{rest}")), &secret)?;
        silent(&parse(&format!("postgresql://user:{secret}@%2Frun:x{rest}")), &secret)?;
        silent(&parse(&format!("user:{secret}@host{rest}")), &secret)?;
    }

    #[test]
    fn no_password_parameter_is_ever_shown(secret in password()) {
        // An unescaped `&` ends the parameter, and what follows may be a valid one: that is no password any more.
        let secret = secret.replace('&', "");
        silent(&parse(&format!("postgres://user@host/db?password={secret}")), &secret)?;
        silent(&parse(&format!("postgres://user@host/db?password={secret}&sslmode={secret}")), &secret)?;
        silent(&parse(&format!("postgres://user@host/db?sslmode={secret}&{secret}=1")), &secret)?;
    }

    #[test]
    fn an_encoded_password_arrives_as_it_was(secret in "[^\\x00]{1,20}") {
        let encoded = percent_encoding::utf8_percent_encode(&secret, percent_encoding::NON_ALPHANUMERIC);
        let config = parse(&format!("postgres://user:{encoded}@host/db")).unwrap();
        prop_assert_eq!(config.target.password.as_ref().unwrap().expose(), secret.as_bytes());
        silent(&Ok(config), &secret)?;
    }

    #[test]
    fn nothing_panics(url in "\\PC{0,40}", tail in "[a-z%:@/?&=,\\[\\]]{0,40}") {
        let _ = parse(&url);
        let _ = parse(&format!("postgres://{tail}"));
        let _ = parse(&format!("postgres://{url}"));
    }
}
