//! An API server of one's own, without nodes and controllers.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use tempfile::TempDir;

const KUBE: &str = "bin/kube-v1.34.4";
const ETCD: &str = "/usr/bin/etcd";
const START_WITHIN: Duration = Duration::from_secs(120);

/// Users that the server knows, by their token: (token and short name, user, groups).
const USERS: [(&str, &str, &str); 5] = [
    ("admin", "admin", "system:masters"),
    ("jane", "jane", "platform-team"),
    ("operator", "system:serviceaccount:kith-system:kith-operator", "system:serviceaccounts"),
    ("collector", "system:serviceaccount:kube-system:generic-garbage-collector", "system:serviceaccounts"),
    ("terminator", "system:serviceaccount:kube-system:namespace-controller", "system:serviceaccounts"),
];

/// Attempts to start both.
const STARTS: u32 = 3;

/// etcd and kube-apiserver on ports of their own; both end with this value.
pub(crate) struct ApiServer {
    folder: TempDir,
    port: u16,
    children: Vec<Child>,
}

impl ApiServer {
    /// Starts both and waits until the server is ready.
    pub(crate) fn start() -> Self {
        let kube = cache().join(KUBE);
        assert!(kube.exists(), "{} is missing: run e2e/local/deps.sh kube", kube.display());
        assert!(Path::new(ETCD).exists(), "{ETCD} is missing: run e2e/local/deps.sh debian");
        let folder = tempfile::Builder::new().prefix("kith-admission-").tempdir().expect("a temporary folder");
        for name in ["kube-apiserver", "kubectl"] {
            std::os::unix::fs::symlink(&kube, folder.path().join(name)).expect("a link");
        }
        let tokens: Vec<_> =
            USERS.iter().map(|(token, user, groups)| format!("{token},{user},{token},{groups}")).collect();
        fs::write(folder.path().join("tokens.csv"), tokens.join("\n")).expect("tokens");
        let key = folder.path().join("service-account.key");
        let made = Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048").output().expect("openssl");
        assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));

        let mut server = Self { folder, port: 0, children: Vec::new() };
        for left in (0..STARTS).rev() {
            let etcd_port = free_port();
            server.port = free_port();
            server.spawn_etcd(etcd_port);
            server.spawn_apiserver(etcd_port);
            server.write_kubeconfig();
            if server.wait_until_ready(left == 0) {
                break;
            }
            // Somebody took one of the ports before they were listened on.
            server.end();
        }
        server
    }

    fn end(&mut self) {
        // The API server first: without etcd it would complain for a minute. They may have ended by themselves.
        for mut child in self.children.drain(..).rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Where the server listens.
    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// kubectl as the administrator: what it prints, or what it complains about.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(self.folder.path().join("kubectl"))
            .env("KUBECONFIG", self.folder.path().join("kubeconfig"))
            .env("KUBECACHEDIR", self.folder.path().join("cache"))
            .args(arguments)
            .output()
            .expect("kubectl runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// A file with this content, for kubectl.
    pub(crate) fn file(&self, name: &str, content: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, content).expect("a file");
        path.display().to_string()
    }

    fn spawn_etcd(&mut self, port: u16) {
        let url = format!("http://127.0.0.1:{port}");
        let data = self.folder.path().join("etcd").display().to_string();
        self.spawn(
            Path::new(ETCD),
            "etcd",
            &[
                format!("--data-dir={data}"),
                format!("--listen-client-urls={url}"),
                format!("--advertise-client-urls={url}"),
                "--listen-peer-urls=http://127.0.0.1:0".to_owned(),
            ],
        );
    }

    fn spawn_apiserver(&mut self, etcd_port: u16) {
        let folder = self.folder.path().to_owned();
        let at = |name: &str| folder.join(name).display().to_string();
        self.spawn(
            &folder.join("kube-apiserver"),
            "kube-apiserver",
            &[
                format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
                format!("--secure-port={}", self.port),
                "--bind-address=127.0.0.1".to_owned(),
                "--advertise-address=127.0.0.1".to_owned(),
                "--endpoint-reconciler-type=none".to_owned(),
                format!("--cert-dir={}", at("certificates")),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                format!("--service-account-key-file={}", at("service-account.key")),
                format!("--service-account-signing-key-file={}", at("service-account.key")),
                "--service-cluster-ip-range=10.0.0.0/16".to_owned(),
                "--authorization-mode=RBAC".to_owned(),
                format!("--token-auth-file={}", at("tokens.csv")),
            ],
        );
    }

    /// The kernel ends the children when this thread ends, even where nobody gets to say so.
    fn spawn(&mut self, program: &Path, name: &str, arguments: &[String]) {
        let log = fs::File::create(self.folder.path().join(format!("{name}.log"))).expect("a log");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        self.children.push(child);
    }

    fn write_kubeconfig(&self) {
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: admin\n\
             clusters: [{{name: here, cluster: {{server: \"{}\", insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: admin, user: {{token: admin}}}}]\n\
             contexts: [{{name: admin, context: {{cluster: here, user: admin}}}}]\n",
            self.url()
        );
        fs::write(self.folder.path().join("kubeconfig"), config).expect("a kubeconfig");
    }

    /// False when one of them could not have its port, unless this was the last attempt.
    fn wait_until_ready(&mut self, last: bool) -> bool {
        let end = Instant::now() + START_WITHIN;
        while self.kubectl(&["get", "--raw=/readyz"]).is_err() {
            let died = self.children.iter_mut().any(|child| child.try_wait().is_ok_and(|status| status.is_some()));
            if died && !last && self.log_tail().contains("address already in use") {
                return false;
            }
            assert!(!died && Instant::now() < end, "the API server is not ready:\n{}", self.log_tail());
            thread::sleep(Duration::from_millis(200));
        }
        true
    }

    fn log_tail(&self) -> String {
        let tail = |name: &str| {
            let log = fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            lines[lines.len().saturating_sub(15)..].join("\n")
        };
        format!("{}\n{}", tail("etcd.log"), tail("kube-apiserver.log"))
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.end();
    }
}

/// The cache of built tools.
pub(crate) fn cache() -> PathBuf {
    let chosen = env::var_os("KITH_CACHE").filter(|path| !path.is_empty()).map(PathBuf::from);
    chosen.unwrap_or_else(|| PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache/kith"))
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}
