//! `annulus agent`: one node as a process of its own.

use std::io::IsTerminal;
use std::process::ExitCode;

use annulus::{Exit, Node, http};
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

use crate::config::Source;
use crate::output::escape;

#[derive(Debug, Args)]
pub(crate) struct Agent {
    #[command(flatten)]
    source: Source,

    /// What is logged to standard error: a level, or directives such as `annulus::swim=debug,info`.
    #[arg(long, env = "RUST_LOG", hide_env_values = true, default_value = "info", value_name = "FILTER", value_parser = filter)]
    log: String,

    /// How it is logged.
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum LogFormat {
    #[default]
    Text,
    Json,
}

fn filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

impl Agent {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        self.start_logging()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(self.serve())
    }

    fn start_logging(&self) -> anyhow::Result<()> {
        let logs = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::try_new(&self.log)?)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => logs.init(),
            LogFormat::Json => logs.json().init(),
        }
        Ok(())
    }

    async fn serve(self) -> anyhow::Result<ExitCode> {
        let config = self.source.load()?.config;
        let mut signals = Signals::listen()?;
        // What is likely to fail comes before the node shows itself to others.
        http::Admin::from_config(&config.http)?;
        let server = match config.http.listen_address() {
            Some(listen) => Some(http::bind(listen).await?),
            None => None,
        };
        let id = config.node.id.clone();
        let node = Node::builder(&id).config(config).start().await?;
        if let Some(address) = node.gossip_addr() {
            tracing::info!(%address, "gossip is listening");
        }
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async move { drop(stopped.await) };
        let mut http = tokio::spawn(answer(server, node.clone(), stopped));

        tokio::select! {
            () = signals.next() => {}
            exit = node.closed() => return ended(exit),
            result = &mut http => {
                node.leave().await;
                result?.context("the node has left, since nobody could ask it any more")?;
                bail!("the HTTP server ended");
            }
        }
        tracing::info!("leaving; a second signal ends the process at once");
        tokio::spawn(async move {
            signals.next().await;
            eprintln!("annulus: ended at once, by a second signal");
            std::process::exit(1);
        });
        let report = node.leave().await;
        for part in &report.unfinished {
            eprintln!("annulus: not finished: {}", escape(part));
        }
        drop(stop);
        http.await??;
        match node.closed().await {
            Exit::Stopped => Ok(ExitCode::SUCCESS),
            failed @ Exit::Failed { .. } => ended(failed),
        }
    }
}

/// Answers over HTTP until told to stop; without a server, only waits for that.
async fn answer(
    server: Option<http::Server>,
    node: Node,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> Result<(), http::ServeError> {
    match server {
        Some(server) => {
            tracing::info!(address = %server.local_addr(), "HTTP is listening");
            server.run(node, stopped).await
        }
        None => {
            stopped.await;
            Ok(())
        }
    }
}

/// The node ended although nobody asked for it.
fn ended(exit: Exit) -> anyhow::Result<ExitCode> {
    match exit {
        Exit::Failed { actor, cause } => bail!("the node failed: {}: {}", escape(&actor), escape(&cause)),
        Exit::Stopped => bail!("the node has stopped"),
    }
}

/// The signals that ask a process to end.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    /// From now on the signals do not end the process by themselves.
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    #[expect(clippy::unnecessary_wraps, reason = "as on Unix")]
    fn listen() -> std::io::Result<Self> {
        Ok(Self {})
    }

    async fn next(&mut self) {
        // Without a way to listen there is no signal.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
