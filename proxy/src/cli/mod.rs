//! The command line: what an operator types, and the exit status that scripts read.

mod check;
mod client;
mod flip;
mod probe;
mod show;
mod table;
#[cfg(test)]
mod tests;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use crossover_admin_api::model::Side;
use crossover_config::Secret;

use client::{Client, ClientError};

const EXIT_STATUS: &str = "Exit status: 0 done; 1 refused or failed; 2 wrong usage; 3 the running Crossover cannot be reached; \
                           130 interrupted with Ctrl-C, which changes nothing.";

/// Moves Kafka topics between two clusters while their clients keep running.
#[derive(Debug, Parser)]
#[command(name = "crossover", version, after_help = EXIT_STATUS)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Admin API of the running Crossover.
    #[arg(long, global = true, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    admin: String,
    /// File with the token of the admin API.
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print JSON: one object, or one on each line where there is one per topic or event.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve clients; prints "ready" once they can connect. SIGTERM drains and ends.
    Run(ConfigFile),
    /// Report every problem of a configuration file, then connect to both clusters.
    Check(ConfigFile),
    /// Show topics, owners, eras, groups, alarms, and whether the source may be stopped.
    Status {
        /// Show the eras of every partition.
        #[arg(long)]
        partitions: bool,
    },
    /// Show what a cutover or rollback would do, with all checks; changes nothing.
    Plan {
        #[command(flatten)]
        flip: FlipArgs,
        /// The wanted owner.
        #[arg(long, value_name = "SIDE", default_value = "target")]
        to: SideArg,
    },
    /// Move topics from the source to the target, all or none, and wait for the end.
    Cutover(FlipArgs),
    /// Move topics from the target back to the source, all or none, and wait for the end.
    Rollback(FlipArgs),
    /// Stop the running operation; possible until SEAL. Topics stay with their old owner.
    Abort {
        /// Only if this operation is the running one.
        #[arg(long, value_name = "ID")]
        operation: Option<String>,
    },
    /// Follow what happens until Ctrl-C.
    Watch,
    /// Show the record of ownership changes.
    Ledger {
        /// First sequence to show.
        #[arg(long, default_value_t = 0)]
        since: u64,
    },
    /// Translate one offset between what clients see and what a cluster stores.
    Translate(TranslateArgs),
    /// Show consumer groups, or move one.
    Groups {
        #[command(subcommand)]
        command: Option<GroupsCommand>,
    },
    /// Show open transactions, or abort one that a flip would wait for.
    Transactions {
        #[command(subcommand)]
        command: Option<TransactionsCommand>,
    },
    /// Look into the state directory of a Crossover that is not running.
    State {
        #[command(subcommand)]
        command: StateCommand,
    },
    /// Run the whole story on two real clusters of its own and check every record.
    Demo(crate::demo::DemoArgs),
}

#[derive(Args, Debug)]
struct ConfigFile {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "crossover.toml")]
    config: PathBuf,
}

/// What a plan, a cutover and a rollback have in common.
#[derive(Args, Clone, Debug)]
struct FlipArgs {
    /// Topics, as clients name them.
    #[arg(required = true, value_name = "TOPIC")]
    topics: Vec<String>,
    /// Create topics that are missing on the new owner, with the same partitions and configuration.
    #[arg(long)]
    create: bool,
    /// Move the consumer groups of these topics as well.
    #[arg(long)]
    with_groups: bool,
    /// Move this consumer group as well; may be repeated.
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// Go on where a check allows an override; `plan` prints the consequences.
    #[arg(long)]
    force: bool,
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("offset").required(true).args(["virtual_offset", "native"]))]
struct TranslateArgs {
    #[arg(long)]
    topic: String,
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    partition: i32,
    /// An offset as clients see it.
    #[arg(long = "virtual", value_name = "OFFSET", value_parser = clap::value_parser!(i64).range(0..))]
    virtual_offset: Option<i64>,
    /// An offset in the log of the cluster named by --side.
    #[arg(long, value_name = "OFFSET", requires = "side", value_parser = clap::value_parser!(i64).range(0..))]
    native: Option<i64>,
    /// The cluster of --native.
    #[arg(long, requires = "native", conflicts_with = "virtual_offset")]
    side: Option<SideArg>,
}

#[derive(Debug, Subcommand)]
enum GroupsCommand {
    /// Move a group's coordinator to the other cluster and wait for the end.
    Move {
        group: String,
        #[arg(long, value_name = "SIDE")]
        to: SideArg,
    },
}

#[derive(Debug, Subcommand)]
enum TransactionsCommand {
    /// Abort the open transaction of a transactional id. Its producer is fenced, as by a new instance of the application.
    Abort { transactional_id: String },
}

#[derive(Debug, Subcommand)]
enum StateCommand {
    /// Print topics, timelines and the last operation as they are stored.
    Show(ConfigFile),
    /// Rebuild a lost state directory from the copies in the clusters.
    Restore(ConfigFile),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SideArg {
    Source,
    Target,
}

impl From<SideArg> for Side {
    fn from(side: SideArg) -> Side {
        match side {
            SideArg::Source => Side::Source,
            SideArg::Target => Side::Target,
        }
    }
}

/// How a command ended when nothing went wrong on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// The command ran, and the answer is no.
    Failed,
    Interrupted,
}

/// The whole program.
/// Whoever reads the output may have seen enough (`crossover status | head`): no report of a crash for that.
fn end_quietly_with_the_reader() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if said.starts_with("failed printing to stdout") && said.contains("Broken pipe") {
            std::process::exit(141);
        }
        report(panic);
    }));
}

pub(crate) fn main() -> ExitCode {
    end_quietly_with_the_reader();
    let cli = Cli::parse();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    #[cfg(feature = "bug-flags")]
    builder.on_thread_start(break_rule);
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("crossover: the runtime cannot be started: {error}");
            return ExitCode::from(1);
        }
    };
    match runtime.block_on(dispatch(cli)) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::from(1),
        Ok(Outcome::Interrupted) => ExitCode::from(130),
        Err(error) => {
            eprintln!("crossover: {error:#}");
            ExitCode::from(exit_status(&error))
        }
    }
}

/// Switches the rule off that `CROSSOVER_BUG` names, in this thread.
#[cfg(feature = "bug-flags")]
fn break_rule() {
    use crossover_core::bug;
    if let Ok(name) = std::env::var("CROSSOVER_BUG") {
        let bug = bug::named(&name);
        assert!(bug.is_some(), "CROSSOVER_BUG: there is no rule {name} to switch off");
        bug::set(bug);
    }
}

fn exit_status(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Unreachable { .. }) => 3,
        Some(ClientError::Address { .. }) => 2,
        _ => 1,
    }
}

async fn dispatch(cli: Cli) -> anyhow::Result<Outcome> {
    let json = cli.json;
    // Opened by the commands that need it, so that `run` does not ask for a token file.
    let client = || connect(&cli.admin, cli.token_file.as_deref());
    match cli.command {
        Command::Run(file) => {
            crate::run::run(crossover_config::load(&file.config)?).await?;
            Ok(Outcome::Done)
        }
        Command::Check(file) => check::check(&file.config, json).await,
        Command::Status { partitions } => show::status(&client()?, partitions, json).await,
        Command::Plan { flip, to } => flip::plan(&client()?, flip, to.into(), json).await,
        Command::Cutover(args) => flip::flip(&client()?, args, Side::Target, json).await,
        Command::Rollback(args) => flip::flip(&client()?, args, Side::Source, json).await,
        Command::Abort { operation } => flip::abort(&client()?, operation, json).await,
        Command::Watch => watch::watch(&client()?, json).await,
        Command::Ledger { since } => show::ledger(&client()?, since, json).await,
        Command::Translate(args) => show::translate(&client()?, &args, json).await,
        Command::Groups { command: None } => show::groups(&client()?, json).await,
        Command::Groups { command: Some(GroupsCommand::Move { group, to }) } => {
            flip::move_group(&client()?, group, to.into(), json).await
        }
        Command::Transactions { command: None } => show::transactions(&client()?, json).await,
        Command::Transactions { command: Some(TransactionsCommand::Abort { transactional_id }) } => {
            show::abort_transaction(&client()?, transactional_id, json).await
        }
        Command::State { command: StateCommand::Show(file) } => {
            print!("{}", crate::run::show_state(&crossover_config::load(&file.config)?, json)?);
            Ok(Outcome::Done)
        }
        Command::State { command: StateCommand::Restore(file) } => {
            print!("{}", crate::run::restore_state(crossover_config::load(&file.config)?).await?);
            Ok(Outcome::Done)
        }
        Command::Demo(args) => match crate::demo::run(args).await? {
            true => Ok(Outcome::Done),
            false => Ok(Outcome::Failed),
        },
    }
}

fn connect(admin: &str, token_file: Option<&std::path::Path>) -> anyhow::Result<Client> {
    let token = match token_file {
        None => None,
        Some(path) => Some(
            Secret::read(path)
                .map_err(|error| anyhow::anyhow!("the token file {} {error}", path.display()))?,
        ),
    };
    Ok(Client::new(admin, token)?)
}

/// Prints an answer as JSON on one line.
fn print_json<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}
