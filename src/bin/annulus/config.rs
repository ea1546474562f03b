//! `annulus config`: configuration files, without a node.

use std::path::PathBuf;
use std::process::ExitCode;

use annulus::config::{Config as Settings, ConfigError, Loaded, reference};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::output::{Output, escape};

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Check a configuration and print everything that is wrong with it.
    Check(Source),
    /// Print the effective configuration with the origin of each value; secrets are hidden.
    Print(Source),
    /// Print all keys with type, default and meaning, as Markdown.
    Reference,
}

/// Where settings come from: the file, over it the environment (ANNULUS__SECTION__KEY), over it --set.
#[derive(Debug, Args)]
pub(crate) struct Source {
    /// The configuration file: YAML, TOML or JSON, by its extension.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,

    /// Override one key. May be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

impl Source {
    pub(crate) fn load(&self) -> Result<Loaded, ConfigError> {
        let loader = Settings::loader().file(&self.config).environment();
        self.set.iter().fold(loader, |loader, assignment| loader.set(assignment)).load()
    }
}

impl Config {
    pub(crate) fn run(self, output: Output) -> anyhow::Result<ExitCode> {
        match self {
            Self::Check(source) => return check(&source, output),
            Self::Print(source) => {
                let loaded = source.load()?;
                output.print(&json!({ "settings": loaded.rows() }), || loaded.to_yaml())?;
            }
            Self::Reference => {
                let text = reference::markdown();
                output.print(&json!({ "markdown": text }), || text.clone())?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn check(source: &Source, output: Output) -> anyhow::Result<ExitCode> {
    let file = escape(&source.config.display().to_string());
    let problems = source.load().err().map(|error| problems(&error)).unwrap_or_default();
    let answer =
        json!({ "file": source.config.display().to_string(), "ok": problems.is_empty(), "problems": problems });
    if problems.is_empty() {
        output.print(&answer, || format!("{file}: ok"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if output == Output::Json {
        output.print(&answer, String::new)?;
    }
    for problem in &problems {
        let reason = problem["reason"].as_str().unwrap_or_default();
        match problem["key"].as_str() {
            Some(key) => eprintln!("{}: {reason}", escape(key)),
            None => eprintln!("{reason}"),
        }
    }
    Ok(ExitCode::FAILURE)
}

/// Each problem with its key, if it has one, and the reason.
fn problems(error: &ConfigError) -> Vec<Value> {
    match error {
        ConfigError::Invalid(problems) => problems.iter().map(|problem| json!(problem)).collect(),
        ConfigError::UnknownKey { key, .. } | ConfigError::WrongType { key, .. } => {
            vec![json!({ "key": key, "reason": error.to_string() })]
        }
        _ => vec![json!({ "key": null, "reason": error.to_string() })],
    }
}
