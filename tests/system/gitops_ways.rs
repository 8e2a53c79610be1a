//! Every way to a repository and every kind of signature, with the real servers and programs; and what is told where a way is closed.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Instant,
};

use crate::{
    gitops::{Followed, READ},
    support::{
        DEADLINE, has_programs,
        host::{Ran, ran},
    },
};

fn run(program: &str, args: &[&str]) -> String {
    let Ran { code, out, err } = ran(Command::new(program).args(args));
    assert_eq!(code, 0, "{program} {args:?}: {out}{err}");
    out.trim().to_owned()
}

/// A key pair for ssh; the public half, as files have it.
fn ssh_key(path: &Path) -> String {
    run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path.to_str().unwrap()]);
    fs::read_to_string(path.with_extension("pub")).unwrap().trim().to_owned()
}

/// A server of ssh that lets one key in, as the user who runs this.
struct Sshd(Child);

impl Sshd {
    /// With the host key `host_key` in `root`, until it listens on `port`.
    fn start(root: &Path, port: u16, host_key: &str) -> Self {
        if rustix::process::geteuid().is_root() {
            // Where root's sshd shuts in what has no rights yet. Debian makes it when the service starts.
            fs::DirBuilder::new().recursive(true).mode(0o755).create("/run/sshd").unwrap();
        }
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {0}/{host_key}\nAuthorizedKeysFile {0}/authorized_keys\nPidFile none\n\
             StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n",
            root.display()
        );
        fs::write(root.join("sshd_config"), config).unwrap();
        // By its whole path, or it would not start itself anew for each connection.
        let mut sshd = Command::new(sshd());
        sshd.args(["-D", "-e", "-f"]).arg(root.join("sshd_config"));
        sshd.stderr(fs::File::create(root.join("sshd.log")).unwrap()).stdin(Stdio::null());
        let started = Self(sshd.spawn().unwrap());
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < DEADLINE, "{}", fs::read_to_string(root.join("sshd.log")).unwrap());
            std::thread::yield_now();
        }
        started
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Debian keeps it where only root's PATH leads.
fn sshd() -> PathBuf {
    let places = ["/usr/sbin/sshd", "/usr/bin/sshd", "/usr/local/sbin/sshd"];
    places.iter().map(PathBuf::from).find(|place| place.exists()).unwrap_or_else(|| "sshd".into())
}

fn has_sshd() -> bool {
    sshd().is_absolute() || has_programs(&["sshd"])
}

#[tokio::test(flavor = "multi_thread")]
async fn over_ssh_only_the_right_key_gets_in_and_only_the_right_server_is_believed() {
    if !has_programs(&["git", "ssh", "ssh-keygen", "id"]) || !has_sshd() {
        return;
    }
    let mut it = Followed::prepare(&["ada"], "ssh_key_file = \"deploy-key\"\nknown_hosts_file = \"known_hosts\"");
    let root = it.host.root().to_owned();
    let port = it.host.wanted.https - 1;
    it.host.wanted.ports.1 -= 1;
    let (deploy, stranger) = (ssh_key(&root.join("deploy-key")), ssh_key(&root.join("stranger")));
    let (host, other) = (ssh_key(&root.join("host-key")), ssh_key(&root.join("other-host-key")));
    let known = |key: &str| fs::write(root.join("known_hosts"), format!("[127.0.0.1]:{port} {key}\n")).unwrap();
    fs::write(root.join("authorized_keys"), &stranger).unwrap();
    known(&other);
    let sshd = Sshd::start(&root, port, "host-key");
    let user = run("id", &["-un"]);
    let url = format!("ssh://{user}@127.0.0.1:{port}{}", root.join("remote.git").display());
    let remote = format!("file://{}", root.join("remote.git").display());
    it.host.edit(|wanted| wanted.more = wanted.more.replace(&remote, &url));
    it.host.launch().await;
    it.host.wanted.add("bob");
    let pushed = it.push("Add bob", &[]);

    let why = it.sync(&[]).1.last_error.unwrap();
    assert!(why.contains("SHA256:") && why.contains("another key than `known_hosts_file` says"), "{why}");
    known(&host);
    let why = it.sync(&[]).1.last_error.unwrap();
    assert!(why.contains("Permission denied (publickey") && why.contains("as a deploy key"), "{why}");
    assert_eq!(it.host.user("ada").get(READ).await.status, 200, "what there is goes on");
    fs::write(root.join("authorized_keys"), &deploy).unwrap();
    let (code, status) = it.sync(&[]);
    assert_eq!((code, status.last_error, status.applied.map(|commit| commit.id)), (0, None, Some(pushed)));
    it.host.settled().await;

    // Where no file is named, the first key that is seen is kept, and another one is not believed later.
    it.host.wanted.more = it.host.wanted.more.replace("known_hosts_file", "# known_hosts_file");
    it.push("Believe whoever is first", &[]);
    assert_eq!(it.sync(&[]).0, 0);
    it.host.settled().await;
    let after = it.push("Another one", &[]);
    assert_eq!(it.sync(&[]).1.applied.unwrap().id, after);
    drop(sshd);
    let why = it.sync(&[]).1.last_error.unwrap();
    assert!(why.contains("Connection refused") && why.contains("server reachable"), "{why}");
    let _impostor = Sshd::start(&root, port, "other-host-key");
    let why = it.sync(&[]).1.last_error.unwrap();
    assert!(why.contains("SHA256:") && why.contains("gitops/known_hosts in the state directory"), "{why}");
}

/// A GnuPG home of its own. Its agent ends with it.
struct Keyring(PathBuf);

impl Keyring {
    fn new(path: PathBuf) -> Self {
        fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        Self(path)
    }

    fn gpg(&self, args: &[&str]) -> String {
        run("gpg", &[&["--homedir", self.0.to_str().unwrap(), "--batch", "--quiet"], args].concat())
    }

    fn make_key(&self, of: &str) {
        self.gpg(&["--pinentry-mode", "loopback", "--passphrase", "", "--quick-generate-key", of, "ed25519", "sign", "never"]);
    }

    /// What git signs with this key by.
    fn settings(&self, of: &str) -> [String; 4] {
        let script = self.0.join("gpg");
        fs::write(&script, format!("#!/bin/sh\nexec gpg --homedir {} \"$@\"\n", self.0.display())).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let program = format!("gpg.program={}", script.display());
        ["gpg.format=openpgp".to_owned(), program, format!("user.signingKey={of}"), "commit.gpgSign=true".to_owned()]
    }
}

impl Drop for Keyring {
    fn drop(&mut self) {
        ran(Command::new("gpgconf").arg("--homedir").arg(&self.0).args(["--kill", "all"]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_gnupg_signed_are_applied_where_its_home_has_the_key() {
    if !has_programs(&["git", "gpg", "gpgconf"]) {
        return;
    }
    // The socket of its agent lies in it, and has room for a short path only.
    let short = tempfile::Builder::new().prefix("g").tempdir_in("/tmp").unwrap();
    let (known, stranger) = (Keyring::new(short.path().join("k")), Keyring::new(short.path().join("s")));
    known.make_key("bob@example.com");
    stranger.make_key("eve@example.com");
    let trusted = Keyring::new(short.path().join("t"));
    let public = short.path().join("bob.asc");
    known.gpg(&["--armor", "--output", public.to_str().unwrap(), "--export", "bob@example.com"]);
    trusted.gpg(&["--import", public.to_str().unwrap()]);

    let mut it = Followed::prepare(&["ada"], &format!("verify = {:?}", trusted.0));
    it.host.launch().await;
    it.host.wanted.add("bob");
    for settings in [&[][..], &stranger.settings("eve@example.com")] {
        it.push("Not by one of us", settings);
        let (code, status) = it.sync(&[]);
        assert_eq!((code, status.applied), (2, None), "{settings:?}");
        assert!(status.refused_because.unwrap().contains("sign it, or add its key there"), "{settings:?}");
        assert!(!it.text().contains("bob"));
    }
    let signed = it.push("By one of us", &known.settings("bob@example.com"));
    let (code, status) = it.sync(&[]);
    assert_eq!((code, status.applied.map(|commit| commit.id)), (0, Some(signed)), "{:?}", status.refused_because);
    it.host.settled().await;
}

/// `git http-backend` behind a server that asks for a password.
struct Forge {
    port: u16,
    /// What was sent as Authorization, request by request.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Forge {
    fn start(root: PathBuf, password: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, seen) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(Vec::new())));
        let (noted, password) = (seen.clone(), password.to_owned());
        // It ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away is no matter here.
                let _ = answer(&stream.unwrap(), &root, &password, &noted);
            }
        });
        Self { port, seen }
    }
}

fn answer(mut stream: &TcpStream, root: &Path, password: &str, seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head)? > 0 {}
    let field = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(is, _)| is.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value).to_owned()
    };
    let length = field("content-length").parse().unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    seen.lock().unwrap().push(field("authorization"));
    if field("authorization") != format!("Basic {password}") {
        return stream
            .write_all(b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm=\"git\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut backend = Command::new("git");
    backend.args(["-c", "safe.directory=*", "http-backend"]).env("GIT_PROJECT_ROOT", root).env("GIT_HTTP_EXPORT_ALL", "1");
    backend.env("REQUEST_METHOD", method).env("PATH_INFO", path).env("QUERY_STRING", query).env("CONTENT_TYPE", field("content-type"));
    backend.env("CONTENT_LENGTH", length.to_string()).env("HTTP_CONTENT_ENCODING", field("content-encoding"));
    backend.env("GIT_PROTOCOL", field("git-protocol"));
    let mut backend = backend.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    backend.stdin.take().unwrap().write_all(&body)?;
    let out = backend.wait_with_output()?.stdout;
    let status = if out.starts_with(b"Status: ") { "" } else { "Status: 200 OK\r\n" };
    let answer = [status.as_bytes(), &out].concat();
    stream.write_all(&[b"HTTP/1.1 ", &answer[b"Status: ".len()..]].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http_the_token_opens_the_repository_and_stands_in_no_log() {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    if !has_programs(&["git"]) {
        return;
    }
    let mut it = Followed::prepare(&["ada"], "");
    let root = it.host.root().to_owned();
    let token = "glpat-4f9d1c7be2a05836";
    let forge = Forge::start(root.clone(), &STANDARD.encode(format!("x-access-token:{token}")));
    let remote = format!("file://{}", root.join("remote.git").display());
    let url = format!("http://127.0.0.1:{}/remote.git", forge.port);
    it.host.edit(|wanted| wanted.more = wanted.more.replace(&remote, &url));
    let put_token = |token: &str| {
        fs::write(root.join("token"), format!("{token}\n")).unwrap();
        fs::set_permissions(root.join("token"), fs::Permissions::from_mode(0o600)).unwrap();
    };
    put_token("glpat-of-yesterday");
    it.host.launch().await;
    let why = it.sync(&[]).1.last_error.unwrap();
    assert!(why.contains("the repository is not public: name a `token_file`"), "{why}");
    it.host.edit(|wanted| wanted.more.push_str("token_file = \"token\"\n"));
    it.host.settled().await;
    let why = it.sync(&[]).1.last_error.unwrap();
    assert!(why.contains("`token_file` under [gitops] needs a token that may read the repository"), "{why}");
    put_token(token);
    let pushed = it.push("With a token", &[]);
    let (code, status) = it.sync(&[]);
    assert_eq!((code, status.last_error, status.applied.map(|commit| commit.id)), (0, None, Some(pushed)));
    assert!(forge.seen.lock().unwrap().iter().all(|sent| !sent.contains(token)), "as a password, not in the clear");
    let told = [it.host.logged(), it.host.account(), it.host.cli(&["gitops", "status"]).out].concat();
    for secret in [token, "glpat-of-yesterday", &STANDARD.encode(format!("x-access-token:{token}"))] {
        assert!(!told.contains(secret), "{secret}");
    }
    let config = fs::read_to_string(it.host.state_dir().join("gitops/repo.git/config")).unwrap();
    assert!(!config.contains(token) && !config.contains("extraHeader"), "{config}");
}

/// A file system of its own, which is full soon.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, kilobytes: usize) -> Self {
        fs::create_dir_all(&at).unwrap();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={kilobytes}k"), "sq-agent-test", at.to_str().unwrap()]);
        Self(at)
    }

    fn grow(&self, kilobytes: usize) {
        run("mount", &["-o", &format!("remount,size={kilobytes}k"), self.0.to_str().unwrap()]);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        ran(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_is_told_with_a_remedy_and_what_was_pushed_is_applied_once_there_is_room() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root may mount the disk that is to be full");
        return;
    }
    if !has_programs(&["git"]) {
        return;
    }
    let mut it = Followed::prepare(&["ada"], "");
    let disk = SmallDisk::mount(it.host.state_dir().join("gitops"), 600);
    it.host.launch().await;
    it.host.until("the first look", |status| status.gitops.as_ref().is_some_and(|gitops| gitops.applied.is_some())).await;
    let mut large = vec![0; 2 << 20];
    getrandom::fill(&mut large).unwrap();
    fs::write(it.clone.join("picture"), large).unwrap();
    it.host.wanted.add("bob");
    let pushed = it.push("Add bob, and a picture that does not fit", &[]);
    for _ in 0..2 {
        let (code, status) = it.sync(&[]);
        let why = status.last_error.unwrap();
        assert!(code == 2 && why.contains("No space left") && why.contains("disk of the state directory is full"), "{why}");
    }
    assert_eq!(it.host.user("ada").get(READ).await.status, 200, "what there is goes on");
    assert!(!it.text().contains("bob"));
    disk.grow(64 << 10);
    let (code, status) = it.sync(&[]);
    assert_eq!((code, status.last_error, status.applied.map(|commit| commit.id)), (0, None, Some(pushed)));
    it.host.settled().await;
}
