use std::process::ExitCode;
#[derive(clap::Args)] pub struct ProduceArgs {}
#[derive(clap::Args)] pub struct ConsumeArgs {}
#[derive(clap::Args)] pub struct BrowseArgs {}
#[derive(clap::Args)] pub struct PerfArgs {}
pub fn produce(_: ProduceArgs) -> anyhow::Result<ExitCode> { todo!() }
pub fn consume(_: ConsumeArgs) -> anyhow::Result<ExitCode> { todo!() }
pub fn browse(_: BrowseArgs) -> anyhow::Result<ExitCode> { todo!() }
pub fn perf(_: PerfArgs) -> anyhow::Result<ExitCode> { todo!() }
