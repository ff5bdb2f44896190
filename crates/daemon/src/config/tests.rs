//! Configurations as people write them, and what the crates get of them.

use super::*;

#[test]
fn drop_ins_replace_single_keys() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "cgroup_parent = \"/a\"\n[log]\nlevel = \"debug\"\n").unwrap();
    std::fs::create_dir(dir.path().join("c.toml.d")).unwrap();
    std::fs::write(dir.path().join("c.toml.d/10.toml"), "[log]\nformat = \"json\"\n").unwrap();
    std::os::unix::fs::symlink("root@host.1", dir.path().join("c.toml.d/.#10.toml")).unwrap();
    std::fs::create_dir(dir.path().join("c.toml.d/20.toml")).unwrap();
    let config = Config::load(Some(&file)).unwrap();
    assert_eq!((config.cgroup_parent.as_str(), config.log.level.as_str()), ("/a", "debug"));
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn a_link_that_leads_to_nothing_is_not_taken_for_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
    assert!(is_absent(&file, &missing));
    std::os::unix::fs::symlink("nothing", &file).unwrap();
    assert!(!is_absent(&file, &missing));
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, "").unwrap();
    std::os::unix::fs::symlink("nothing", dir.path().join("c.toml.d")).unwrap();
    let error = format!("{:#}", Config::load(Some(&file)).unwrap_err());
    assert!(error.contains("c.toml.d"), "{error}");
}

#[test]
fn a_file_that_has_no_end_or_never_begins_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("c.toml");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (file, words) in
        [(fifo.as_path(), "not a regular file"), (Path::new("/dev/zero"), "longer than 16 MiB")]
    {
        let error = format!("{:#}", Config::load(Some(file)).unwrap_err());
        assert!(error.contains(words), "{error}");
    }
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, b"root = \"/x\"").unwrap();
    drop(writer);
    let piped = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
    assert_eq!(Config::load(Some(Path::new(&piped))).unwrap().root, Path::new("/x"));
}

#[test]
fn an_unknown_key_is_an_error_with_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "root = \"/x\"\n[log]\nlevl = \"debug\"\n").unwrap();
    let error = format!("{:?}", Config::load(Some(&file)).unwrap_err());
    assert!(error.contains("c.toml: did you mean `level`?") && error.contains("line 3"), "{error}");
}

#[test]
fn what_no_pod_could_use_is_an_error_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    for (text, words) in [
        ("root = \"data\"", "root"),
        ("state = \"\"", "state"),
        ("socket = \"wharf.sock\"", "socket"),
        ("supervisor = \"wharf-shim\"", "supervisor"),
        ("shim = \"wharf-shim\"", "supervisor"),
        ("cgroup_parent = \"/../up\"", "cgroup_parent"),
        ("cgroup_driver = \"systemd\"\ncgroup_parent = \"/pods\"", "cgroup_parent"),
        ("cgroup_driver = \"auto\"", "cgroupfs"),
        ("[containers]\ndefault_seccomp = \"default\"", "containers.default_seccomp"),
        ("handlers = [\"\"]", "empty"),
        ("cdi.spec_dirs = [\"cdi\"]", "cdi.spec_dirs"),
        ("hooks.dirs = [\"/hooks\", \"hooks\"]", "hooks.dirs"),
        ("[nri]\nsocket = \"nri.sock\"", "nri.socket"),
        ("[nri]\nrequest_timeout_s = 0", "nri.request_timeout_s"),
        ("handlers = [\"a\", \"b\", \"a\"]", "\"a\" is listed twice"),
        ("handlers = 7", "a list of names, or sections"),
        ("[handlers.runc]\npath = \"runc\"", "handlers.runc"),
        ("[handlers.runc]\nroot = \"/x\"", "unknown field `root`"),
        ("[handlers.fast]\noptions = [\"--debug\"]", "handlers.fast: options"),
    ] {
        std::fs::write(&file, text).unwrap();
        let refused = format!("{:#}", Config::load(Some(&file)).unwrap_err());
        assert!(refused.contains(words), "{text}: {refused}");
    }
}

#[test]
fn the_default_parent_is_that_of_the_driver() {
    for (driver, parent) in [(Driver::Cgroupfs, "/wharf"), (Driver::Systemd, "/wharf.slice")] {
        let config = Config { cgroup_driver: driver, ..Config::default() };
        assert_eq!(config.placement().unwrap().parent().as_str(), parent);
    }
}

#[test]
fn the_sample_shows_the_defaults() {
    let sample = include_str!("../../../../deploy/config.toml");
    // A setting is commented out as `#key = value`; prose is `# text`.
    let set =
        |line: &str| line.strip_prefix('#').filter(|line| !line.starts_with([' ', '#'])).map(str::to_owned);
    let text: Vec<String> = sample.lines().map(|line| set(line).unwrap_or_else(|| line.to_owned())).collect();
    assert_eq!(toml::from_str::<Config>(&text.join("\n")).unwrap(), Config::default());
    let every = toml::from_str::<toml::Table>(&Config::default().to_toml().unwrap()).unwrap();
    assert_eq!(toml::from_str::<toml::Table>(&text.join("\n")).unwrap(), every, "a key is missing");
}

/// What the crates are given of a configuration in which one key has another value than by default.
fn handed_on(section: &str, key: &str, value: toml::Value) -> String {
    let mut table = toml::Table::try_from(Config::default()).unwrap();
    // Without it nobody asks for the other files of TLS.
    table["streaming"]["tls_certificate"] = "/certificate".into();
    table[section][key] = value;
    let config: Config = table.try_into().unwrap();
    format!("{:?} {:?} {:?}", config.images(), config.registry().unwrap(), config.streaming())
}

fn another(value: &toml::Value) -> toml::Value {
    use toml::Value;
    match value {
        Value::Integer(number) => Value::Integer(number + 1),
        Value::String(text) if text.parse::<SocketAddr>().is_ok() => "127.0.0.9:9".into(),
        Value::String(_) => "/another".into(),
        Value::Array(_) => Value::Array(vec!["another".into()]),
        Value::Table(_) => toml::toml! { "another.example" = ["tokens.example"] }.into(),
        other => panic!("{other} has a type that no key had before"),
    }
}

#[test]
fn every_key_about_images_registries_and_sessions_reaches_its_crate() {
    let defaults = toml::Table::try_from(Config::default()).unwrap();
    for section in ["images", "registry", "streaming"] {
        // What is pinned is handed on as it is.
        for (key, value) in defaults[section].as_table().unwrap().iter().filter(|(key, _)| *key != "pinned") {
            let (as_is, changed) = (value.clone(), another(value));
            let is_dropped = handed_on(section, key, as_is) == handed_on(section, key, changed);
            assert!(!is_dropped, "{section}.{key}");
        }
    }
}

#[test]
fn handlers_have_names_or_sections() {
    let text = "[handlers.runc]\npath = \"/usr/sbin/runc\"\noptions = [\"--debug\"]\nprivileged_devices = \"usual\"\n";
    let config: Config = toml::from_str(text).unwrap();
    let configs = config.handlers().unwrap();
    assert_eq!(configs.keys().collect::<Vec<_>>(), ["runc", "wharf"]);
    assert_eq!(configs["runc"].program.as_ref().unwrap().as_str(), "/usr/sbin/runc");
    assert!(configs["wharf"].program.is_none());
    assert_eq!(toml::from_str::<Config>(&config.to_toml().unwrap()).unwrap(), config);
}

#[test]
fn what_is_dumped_reads_back() {
    let config = Config::default();
    assert_eq!(toml::from_str::<Config>(&config.to_toml().unwrap()).unwrap(), config);
}
