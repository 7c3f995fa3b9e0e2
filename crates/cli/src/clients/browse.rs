//! `kahawai browse`: looks at the messages of a queue and leaves them there.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use kahawai_stomp::client::{ServerFrame, Subscribe};
use tokio::time::timeout;

use super::link::{Link, LinkArgs};
use super::{block_on, printed};

const SUBSCRIPTION: &str = "1";
const QUIET: std::time::Duration = std::time::Duration::from_secs(30);

/// Look at the messages of a queue, from the first, without consuming them.
#[derive(Args, Debug)]
pub struct BrowseArgs {
    #[command(flatten)]
    link: LinkArgs,
    /// The queue.
    #[arg(long, value_name = "NAME")]
    queue: String,
    /// Only messages whose headers fulfil this condition, like "priority > 3".
    #[arg(long)]
    selector: Option<String>,
    /// Print headers and body as one JSON object per line.
    #[arg(long)]
    json: bool,
}

/// Shows the messages of a queue.
pub fn browse(args: BrowseArgs) -> anyhow::Result<ExitCode> {
    block_on(1, async move {
        let mut link = Link::open(&args.link, None).await?;
        let destination = format!("/queue/{}", args.queue);
        let mut headers = vec![("browser", "true")];
        headers.extend(args.selector.as_deref().map(|selector| ("selector", selector)));
        let (client, out) = link.frame();
        let subscribe =
            Subscribe { id: SUBSCRIPTION, destination: &destination, ack: "auto", headers: &headers };
        client.subscribe(&subscribe, None, out);
        match show(&args, &mut link).await? {
            Shown::All(count) => eprintln!("{count} messages in {destination}"),
            Shown::Enough => return Ok(ExitCode::SUCCESS),
        }
        link.close().await?;
        Ok(ExitCode::SUCCESS)
    })
}

enum Shown {
    All(u64),
    /// Whoever reads our output has closed it.
    Enough,
}

async fn show(args: &BrowseArgs, link: &mut Link) -> anyhow::Result<Shown> {
    let mut count = 0;
    loop {
        let Ok(exchanged) = timeout(QUIET, link.exchange(false)).await else {
            bail!("neither a message nor the end of the queue within {} s", QUIET.as_secs());
        };
        exchanged?;
        let mut printer = std::io::BufWriter::new(std::io::stdout().lock());
        let mut ended = false;
        while let Some((frame, _)) = link.next()? {
            let ServerFrame::Message(message) = frame else { bail!("unexpected answer: {frame:?}") };
            if message.is_browse_end() {
                ended = true;
                continue;
            }
            count += 1;
            let print = if args.json { printed::json } else { printed::line };
            match print(&message, &mut printer) {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Shown::Enough),
                printed => printed.context("write to standard output")?,
            }
        }
        match printer.flush() {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Shown::Enough),
            flushed => flushed.context("write to standard output")?,
        }
        if ended {
            return Ok(Shown::All(count));
        }
    }
}
