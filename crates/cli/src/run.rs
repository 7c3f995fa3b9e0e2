//! `kahawai run`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use kahawai_node::{Node, NodeError, NodeOptions, StompListener};

/// Exit code for a configuration that cannot be used.
const UNUSABLE: u8 = 2;

/// Run a broker. When it is ready it prints one line per connector, `listening stomp 127.0.0.1:61613`, then `ready`. Logs go
/// to standard error. SIGTERM or Ctrl-C stops it in good order.
#[derive(Args)]
pub struct RunArgs {
    /// A configuration file. Not read yet: use the flags.
    config: Option<String>,
    /// Data directory; ActiveMQ's KahaDB directory is one.
    #[arg(long, default_value = "kahawai-data")]
    data: PathBuf,
    /// Where STOMP clients connect, `host:port`; port 0 picks one, `off` = nowhere.
    #[arg(long, default_value = "127.0.0.1:61613")]
    stomp: String,
    /// Where STOMP clients connect over TLS (stomp+ssl), `host:port`.
    #[arg(long, default_value = "off", requires_all = ["tls_cert", "tls_key"])]
    stomp_tls: String,
    /// Certificate chain for TLS, a PEM file.
    #[arg(long)]
    tls_cert: Option<PathBuf>,
    /// Private key for TLS, a PEM file.
    #[arg(long)]
    tls_key: Option<PathBuf>,
    /// OpenWire connector; not built yet: only `off`.
    #[arg(long, default_value = "off")]
    openwire: String,
    /// AMQP connector; not built yet: only `off`.
    #[arg(long, default_value = "off")]
    amqp: String,
    /// MQTT connector; not built yet: only `off`.
    #[arg(long, default_value = "off")]
    mqtt: String,
    /// WebSocket connector; not built yet: only `off`.
    #[arg(long, default_value = "off")]
    ws: String,
    /// Admin HTTP; not built yet: only `off`.
    #[arg(long, default_value = "off")]
    admin: String,
    /// Destination in which messages of priority 5 to 9 overtake those of 4, and these the rest; `NAME` or `topic://NAME`,
    /// patterns (`ORDERS.>`) allowed; may be given several times.
    #[arg(long, value_name = "NAME")]
    prioritised: Vec<String>,
    /// Most client connections at a time.
    #[arg(long, default_value_t = 10_000)]
    connections_max: usize,
    /// Most bytes that non-persistent messages and topic backlogs may take in memory before producers are held back.
    #[arg(long, default_value_t = 256 << 20)]
    memory_bytes_max: u64,
    /// Size at which a new journal file is begun, bytes.
    #[arg(long, default_value_t = 32 << 20)]
    journal_file_bytes: u32,
}

fn unusable(message: &str) -> ExitCode {
    eprintln!("kahawai: {message}");
    ExitCode::from(UNUSABLE)
}

/// Runs a broker until it is told to stop.
pub fn run(args: RunArgs) -> ExitCode {
    if let Some(config) = &args.config {
        return unusable(&format!(
            "{config}: configuration files are not read yet; leave it out and use the flags (`kahawai run --help`)"
        ));
    }
    for (flag, value) in [
        ("--openwire", &args.openwire),
        ("--amqp", &args.amqp),
        ("--mqtt", &args.mqtt),
        ("--ws", &args.ws),
        ("--admin", &args.admin),
    ] {
        if value != "off" {
            return unusable(&format!(
                "{flag} {value}: this connector is not built yet; leave the flag out or say `off`"
            ));
        }
    }
    let mut options = NodeOptions::new(&args.data);
    options.connections_max = args.connections_max;
    options.broker.limits.memory_bytes_max = args.memory_bytes_max;
    let prioritised = args.prioritised.iter().map(|name| kahawai_message::Destination::from_qualified(name));
    options.broker.prioritised = prioritised.collect();
    options.store.journal.file_bytes_max = args.journal_file_bytes;
    if args.stomp != "off" {
        options.stomp.push(StompListener { address: args.stomp, tls: None });
    }
    if args.stomp_tls != "off" {
        options.stomp.push(StompListener { address: args.stomp_tls, tls: args.tls_cert.zip(args.tls_key) });
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return unusable(&format!("cannot start: {error}")),
    };
    match runtime.block_on(serve(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kahawai: {}", kahawai_node::chain(&error));
            match error {
                NodeError::Listen { .. }
                | NodeError::Tls(_)
                | NodeError::Open(kahawai_store::OpenError::Journal(
                    kahawai_journal::OpenError::FileBytes { .. },
                )) => ExitCode::from(UNUSABLE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

async fn serve(options: NodeOptions) -> Result<(), NodeError> {
    // Before anything is announced, so that a signal right after `ready` is not lost.
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .map_err(NodeError::Thread)?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
        .map_err(NodeError::Thread)?;
    let node = Node::start(options).await?;
    let mut out = std::io::stdout().lock();
    for connector in &node.listening {
        // Nobody listens to our output: no reason not to serve.
        let _ = writeln!(out, "listening {} {}", connector.name, connector.address);
    }
    let _ = writeln!(out, "ready");
    let _ = out.flush();
    drop(out);
    node.run(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
    .await
}
