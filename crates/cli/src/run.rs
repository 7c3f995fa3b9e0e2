//! `kahawai run`.

use std::fmt::Display;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use kahawai_admin::Control;
use kahawai_config::{ClusterSettings, Flags, Properties, Protocol, Settings, ZooKeeperSettings};
use kahawai_election::single::SingleProvider;
use kahawai_election::{Provider, RECORD_BYTES_MAX};
use kahawai_election_zookeeper::{Credentials, ZookeeperProvider};
use kahawai_env::{Clock, DiskFiles, Files, SystemClock};
use kahawai_journal::{read_small_file, replace_file};
use kahawai_kdbr::{Secret, Secrets};
use kahawai_node::{
    ClusterNode, ClusterOptions, Listening, Node, NodeError, NodeOptions, OpenProvider, PeerTls,
    PeerTlsFiles, Protection, Said, StompListener,
};
use tokio::net::TcpListener;
use tracing::{info, warn};

/// Exit code for a configuration that cannot be used.
const UNUSABLE: u8 = 2;
/// Where the admin API listens if nothing is said, as ActiveMQ's web console.
const ADMIN: &str = "127.0.0.1:8161";
/// A configuration file is not longer.
const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// Run a broker, alone or in a cluster.
///
/// When it is ready it prints one line per connector, `listening stomp 127.0.0.1:61613`, then `ready`; a node of a cluster that
/// does not lead prints `replica` instead, and opens its connectors when it does. Logs go to standard error. SIGTERM or Ctrl-C
/// stops it in good order; a primary lets another node take over first.
#[derive(Args)]
pub struct RunArgs {
    /// An activemq.xml or ha.xml: a path, `xbean:PATH` or `file:PATH`. Flags have precedence.
    config: Option<String>,
    /// Data directory; ActiveMQ's KahaDB directory is one. [default: kahawai-data]
    #[arg(long)]
    data: Option<String>,
    /// Where STOMP clients connect, `host:port`; port 0 picks one, `off` = nowhere. [default: 127.0.0.1:61613]
    #[arg(long)]
    stomp: Option<String>,
    /// Where STOMP clients connect over TLS (stomp+ssl), `host:port`.
    #[arg(long, requires_all = ["tls_cert", "tls_key"])]
    stomp_tls: Option<String>,
    /// Certificate chain for TLS, a PEM file.
    #[arg(long)]
    tls_cert: Option<String>,
    /// Private key for TLS, a PEM file.
    #[arg(long)]
    tls_key: Option<String>,
    /// OpenWire connector; not built yet: only `off`.
    #[arg(long)]
    openwire: Option<String>,
    /// AMQP connector; not built yet: only `off`.
    #[arg(long)]
    amqp: Option<String>,
    /// MQTT connector; not built yet: only `off`.
    #[arg(long)]
    mqtt: Option<String>,
    /// WebSocket connector; not built yet: only `off`.
    #[arg(long)]
    ws: Option<String>,
    /// Where the admin API listens, `host:port` or `off`. [default: 127.0.0.1:8161, unless that is taken]
    #[arg(long)]
    admin: Option<String>,
    /// File with a token that the admin API wants for commands. Without one it takes them from this machine only.
    #[arg(long)]
    admin_token_file: Option<PathBuf>,
    /// Take part in the cluster that ZooKeeper keeps there, `zk://host:port,.../path`; or `single`: lead alone, with the record in
    /// the data directory.
    #[arg(long, value_name = "URL")]
    cluster: Option<String>,
    /// ZooKeeper user that owns the cluster's nodes there; with --zookeeper-password-file.
    #[arg(long, value_name = "NAME", requires = "zookeeper_password_file")]
    zookeeper_user: Option<String>,
    /// File with that user's password.
    #[arg(long, value_name = "FILE", requires = "zookeeper_user")]
    zookeeper_password_file: Option<PathBuf>,
    /// This node's name in the cluster; stable, it belongs to the data directory.
    #[arg(long, value_name = "NAME")]
    node_id: Option<String>,
    /// Where the other nodes reach this one, `host:port`.
    #[arg(long, value_name = "ADDR")]
    kdbr: Option<String>,
    /// Where to listen for them, if that is another address, `0.0.0.0:61701` for example. [default: as --kdbr]
    #[arg(long, value_name = "ADDR", requires = "kdbr")]
    kdbr_bind: Option<String>,
    /// Copies besides the primary's own without which nothing persistent is confirmed. Seeds a new cluster; `kahawai cluster
    /// set-minimum-replicas` changes it. [default: 1]
    #[arg(long, value_name = "N")]
    minimum_replicas: Option<u32>,
    /// File with the secret that all nodes of the cluster know; a second line is the one before it, while they change it.
    #[arg(long, value_name = "FILE")]
    kdbr_secret_file: Option<PathBuf>,
    /// Certificate chain of this node, a PEM file: replication is over TLS then, on all nodes. The certificate names the host of
    /// --kdbr, and the node as the URI `kdbr:///NODE_ID` or `kdbr://CLUSTER_ID/NODE_ID`; it serves at both ends of a connection.
    #[arg(long, value_name = "FILE", alias = "kdbr-tls-certificate")]
    kdbr_tls_cert: Option<String>,
    /// The certificate's private key, a PEM file.
    #[arg(long, value_name = "FILE")]
    kdbr_tls_key: Option<String>,
    /// CAs of all nodes' certificates, a PEM file. Whoever has a certificate of theirs for a node may replicate.
    #[arg(long, value_name = "FILE")]
    kdbr_tls_ca: Option<String>,
    /// Replicate in plaintext and without a secret beyond the loopback interface: the network is trusted.
    #[arg(long)]
    kdbr_insecure: bool,
    /// How long the election service waits for this node before another one may lead, milliseconds. [default: 10000]
    #[arg(long, value_name = "MS")]
    session_timeout: Option<u32>,
    /// Transfer connections of a synchronisation. [default: 4]
    #[arg(long, value_name = "N")]
    transfer_sessions: Option<u32>,
    /// Bytes per second that synchronisations of all replicas may take; 0 = no limit. [default: 0]
    #[arg(long, value_name = "BYTES")]
    sync_bandwidth: Option<u64>,
    /// Bytes per second at which older data files are read, each once a day, to find damage; 0 = never. What is damaged is repaired
    /// from another node. [default: 4194304]
    #[arg(long, value_name = "BYTES")]
    scrub_bandwidth: Option<u64>,
    /// Among equal copies the node with the higher number leads. [default: 0]
    #[arg(long, value_name = "N")]
    priority: Option<i32>,
    /// Destination in which messages of priority 5 to 9 overtake those of 4, and these the rest; `NAME` or `topic://NAME`,
    /// patterns (`ORDERS.>`) allowed; may be given several times.
    #[arg(long, value_name = "NAME")]
    prioritised: Vec<String>,
    /// Most client connections at a time. [default: 10000]
    #[arg(long)]
    connections_max: Option<usize>,
    /// Most bytes that non-persistent messages and topic backlogs may take in memory before producers are held back.
    /// [default: 268435456]
    #[arg(long)]
    memory_bytes_max: Option<u64>,
    /// Size at which a new journal file is begun, bytes. [default: 33554432]
    #[arg(long)]
    journal_file_bytes: Option<u32>,
}

fn unusable(message: impl Display) -> ExitCode {
    eprintln!("kahawai: {message}");
    ExitCode::from(UNUSABLE)
}

/// Reads a configuration file, or one that it names.
fn read(path: &str) -> std::io::Result<String> {
    let mut text = String::new();
    // One byte more, so that a file that is too long is not taken for a whole one.
    std::fs::File::open(path)?.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text)?;
    Ok(text)
}

fn settings(args: &RunArgs) -> Result<Settings, String> {
    let mut settings = match &args.config {
        None => Settings::default(),
        Some(path) => {
            let properties = Properties::for_file(path, std::env::vars());
            let settings = kahawai_config::load(path, &properties, &mut read).map_err(|e| e.to_string())?;
            for line in kahawai_config::report(&settings).lines() {
                info!("{line}");
            }
            settings
        }
    };
    let flags = Flags {
        data: args.data.clone(),
        stomp: args.stomp.clone(),
        stomp_tls: args.stomp_tls.clone(),
        openwire: args.openwire.clone(),
        amqp: args.amqp.clone(),
        mqtt: args.mqtt.clone(),
        ws: args.ws.clone(),
        admin: args.admin.clone(),
        tls_cert: args.tls_cert.clone(),
        tls_key: args.tls_key.clone(),
        cluster: args.cluster.clone(),
        node_id: args.node_id.clone(),
        kdbr: args.kdbr.clone(),
        minimum_replicas: args.minimum_replicas,
        kdbr_tls_cert: args.kdbr_tls_cert.clone(),
        kdbr_tls_key: args.kdbr_tls_key.clone(),
        kdbr_tls_ca: args.kdbr_tls_ca.clone(),
    };
    settings.apply(&flags).map_err(|e| e.to_string())?;
    Ok(settings)
}

fn node_options(args: &RunArgs, settings: &Settings) -> Result<NodeOptions, String> {
    let node = &settings.node;
    let mut options = NodeOptions::new(&node.directory);
    if let Some(bytes) = args.scrub_bandwidth {
        options.scrub_bytes_per_s = bytes;
    }
    if let Some(max) = args.connections_max.or(node.connections_max(Protocol::Stomp).map(|max| max as usize))
    {
        options.connections_max = max;
    }
    if let Some(bytes) = args.memory_bytes_max.or(node.memory_bytes_max) {
        options.broker.limits.memory_bytes_max = bytes;
    }
    if let Some(bytes) = args.journal_file_bytes.or(node.journal_file_bytes) {
        options.store.journal.file_bytes_max = bytes;
    }
    if let Some(bytes) = node.frame_bytes_max(Protocol::Stomp) {
        options.stomp_limits.frame_bytes_max = usize::try_from(bytes).unwrap_or(usize::MAX);
    }
    let prioritised = args.prioritised.iter().chain(&node.prioritised);
    options.broker.prioritised =
        prioritised.map(|name| kahawai_message::Destination::from_qualified(name)).collect();
    for connector in &node.connectors {
        if !connector.protocol.is_served() {
            continue;
        }
        let tls = match (&node.tls, connector.tls) {
            (_, false) => None,
            (Some(tls), true) => Some((PathBuf::from(&tls.certificate), PathBuf::from(&tls.key))),
            (None, true) => {
                return Err(format!(
                    "{}: a TLS connector needs --tls-cert and --tls-key, or certificate and key of an sslContext",
                    connector.name
                ));
            }
        };
        options.stomp.push(StompListener { address: connector.address.to_string(), tls });
    }
    Ok(options)
}

fn secrets(args: &RunArgs, cluster: &ClusterSettings) -> Result<Secrets, String> {
    let from = |text: &str| Secret::new(text.as_bytes()).map_err(|e| e.to_string());
    let Some(path) = &args.kdbr_secret_file else {
        return match &cluster.secret {
            None => Ok(Secrets::NONE),
            Some(secret) => Ok(Secrets::one(from(secret.expose())?)),
        };
    };
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let named = |e: String| format!("{}: {e}", path.display());
    match (lines.next(), lines.next()) {
        (None, _) => Err(format!("{} is empty", path.display())),
        (Some(new), None) => Ok(Secrets::one(from(new).map_err(named)?)),
        (Some(new), Some(old)) => Ok(Secrets::rotating(from(new).map_err(named)?, from(old).map_err(named)?)),
    }
}

fn peer_tls(cluster: &ClusterSettings) -> Result<Option<PeerTls>, String> {
    let Some(tls) = &cluster.tls else { return Ok(None) };
    let files = PeerTlsFiles {
        certificate: PathBuf::from(&tls.certificate),
        key: PathBuf::from(&tls.key),
        authorities: PathBuf::from(&tls.authorities),
    };
    PeerTls::read(&files, &cluster.node_id).map(Some).map_err(|e| e.to_string())
}

/// What a node that leads alone keeps of its own record.
const SINGLE_RECORD_FILE: &str = "replication/election";

fn single_provider(data: PathBuf) -> OpenProvider {
    Box::new(move |_| {
        let describe = |error: std::io::Error| format!("{}: {SINGLE_RECORD_FILE}: {error}", data.display());
        let files: Arc<dyn Files> = Arc::new(DiskFiles::open(&data).map_err(describe)?);
        let kept = read_small_file(&files, SINGLE_RECORD_FILE, RECORD_BYTES_MAX + 8).map_err(describe)?;
        let keep = Box::new(move |bytes: &[u8]| {
            replace_file(&files, SINGLE_RECORD_FILE, bytes).map_err(|error| error.to_string())
        });
        Ok(Arc::new(SingleProvider::new(kept.as_deref(), keep)?) as Arc<dyn Provider>)
    })
}

fn zookeeper_provider(
    args: &RunArgs,
    cluster: &ClusterSettings,
    zookeeper: &ZooKeeperSettings,
) -> Result<OpenProvider, String> {
    let uri = kahawai_election_zookeeper::Uri {
        servers: zookeeper.servers.iter().map(ToString::to_string).collect(),
        path: zookeeper.path.clone(),
    };
    let session_timeout_ms =
        args.session_timeout.unwrap_or(u32::try_from(zookeeper.session_timeout_ms).unwrap_or(u32::MAX));
    let (user, password) = match (&args.zookeeper_user, &args.zookeeper_password_file) {
        (Some(user), Some(path)) => (user.clone(), token(path)?),
        _ => (zookeeper.userid.clone(), zookeeper.password.expose().to_owned()),
    };
    // Without a password a name protects nothing.
    let credentials = (!password.is_empty()).then_some(Credentials { user, password });
    let node = cluster.node_id.clone();
    Ok(Box::new(move |boot| {
        let clock = Arc::new(|| i64::try_from(SystemClock.boot_ms()).unwrap_or(i64::MAX));
        let options =
            kahawai_election_zookeeper::Options { uri, session_timeout_ms, credentials, node, boot, clock };
        let provider = ZookeeperProvider::open(options).map_err(|e| e.to_string())?;
        Ok(Arc::new(provider) as Arc<dyn Provider>)
    }))
}

fn cluster_options(args: &RunArgs, cluster: &ClusterSettings, data: &Path) -> Result<ClusterOptions, String> {
    let (provider, provider_name) = match &cluster.zookeeper {
        Some(zookeeper) => (zookeeper_provider(args, cluster, zookeeper)?, "zookeeper"),
        None => (single_provider(data.to_owned()), "single"),
    };
    let is_same = cluster.listen == cluster.address && args.kdbr_bind.is_none();
    Ok(ClusterOptions {
        node_id: cluster.node_id.clone(),
        provider,
        provider_name: provider_name.into(),
        listen: args.kdbr_bind.clone().unwrap_or_else(|| cluster.listen.to_string()),
        address: (!is_same || cluster.address.port != 0).then(|| format!("kdbr://{}", cluster.address)),
        minimum_replicas: cluster.minimum_replicas,
        priority: args.priority.unwrap_or(i32::try_from(cluster.priority).unwrap_or(i32::MAX)),
        protection: Protection { secrets: secrets(args, cluster)?, tls: peer_tls(cluster)? },
        insecure: args.kdbr_insecure,
        transfer_sessions: args.transfer_sessions.unwrap_or(cluster.transfer_sessions),
        sync_bytes_per_s: args.sync_bandwidth.or(cluster.sync_bytes_per_second_max).unwrap_or(0),
    })
}

/// Runs a broker until it is told to stop.
pub fn run(args: RunArgs) -> ExitCode {
    let settings = match settings(&args) {
        Ok(settings) => settings,
        Err(problem) => return unusable(problem),
    };
    let options = match node_options(&args, &settings) {
        Ok(options) => options,
        Err(problem) => return unusable(problem),
    };
    let cluster = match settings
        .cluster
        .as_ref()
        .map(|cluster| cluster_options(&args, cluster, &options.data))
        .transpose()
    {
        Ok(cluster) => cluster,
        Err(problem) => return unusable(problem),
    };
    let token = match args.admin_token_file.as_deref().map(token).transpose() {
        Ok(token) => token,
        Err(problem) => return unusable(problem),
    };
    let admin = Admin {
        address: settings.node.admin.as_ref().map(ToString::to_string),
        is_off: args.admin.as_deref() == Some("off"),
        token,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return unusable(format!("cannot start: {error}")),
    };
    // On a worker, which waits for sockets itself: this thread would be woken by one for each frame that a replica gets.
    let served = runtime.block_on(runtime.spawn(serve(options, cluster, admin)));
    match served.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kahawai: {}", kahawai_node::chain(&error));
            match error {
                NodeError::Listen { .. }
                | NodeError::Tls(_)
                | NodeError::Insecure { .. }
                | NodeError::Election(_)
                | NodeError::Open(kahawai_store::OpenError::Journal(
                    kahawai_journal::OpenError::FileBytes { .. },
                )) => ExitCode::from(UNUSABLE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn token(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    match text.trim() {
        "" => Err(format!("{} is empty", path.display())),
        token => Ok(token.to_owned()),
    }
}

/// Where the admin API is to be.
struct Admin {
    address: Option<String>,
    is_off: bool,
    token: Option<String>,
}

impl Admin {
    async fn bind(&self) -> Result<Option<TcpListener>, NodeError> {
        if self.is_off {
            return Ok(None);
        }
        let address = self.address.as_deref().unwrap_or(ADMIN);
        match TcpListener::bind(address).await {
            Ok(listener) => Ok(Some(listener)),
            Err(error) if self.address.is_none() => {
                warn!(address, %error, "no admin API: give this node an address of its own with --admin");
                Ok(None)
            }
            Err(source) => Err(NodeError::Listen { address: address.to_owned(), source }),
        }
    }

    fn serve(self, listener: TcpListener, control: Arc<dyn Control>) {
        let options = kahawai_admin::Options { token: self.token, ..kahawai_admin::Options::default() };
        // It ends with the process.
        tokio::spawn(kahawai_admin::serve(listener, control, options, std::future::pending()));
    }
}

/// One line for whoever started us. Nobody listens: no reason not to serve.
fn say(line: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn listening(connectors: &[Listening]) {
    for connector in connectors {
        say(format_args!("listening {} {}", connector.name, connector.address));
    }
}

async fn serve(options: NodeOptions, cluster: Option<ClusterOptions>, admin: Admin) -> Result<(), NodeError> {
    // Before anything is announced, so that a signal right after `ready` is not lost.
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .map_err(NodeError::Thread)?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
        .map_err(NodeError::Thread)?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let listener = admin.bind().await?;
    if let Some(listener) = &listener
        && let Ok(address) = listener.local_addr()
    {
        say(format_args!("listening admin {address}"));
    }
    let Some(cluster) = cluster else {
        let node = Node::start(options).await?;
        if let Some(listener) = listener {
            admin.serve(listener, node.control());
        }
        listening(&node.listening);
        say("ready");
        return node.run(stop).await;
    };
    let said = |said: &Said<'_>| match said {
        Said::Replica => say("replica"),
        Said::Ready(connectors) => {
            listening(connectors);
            say("ready");
        }
    };
    let node = ClusterNode::start(cluster, options, said).await?;
    if let Some(listener) = listener {
        admin.serve(listener, node.control());
    }
    say(format_args!("listening kdbr {}", node.listening));
    node.run(stop).await
}
