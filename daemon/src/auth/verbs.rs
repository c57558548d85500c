//! `user add`, `user remove`, `user list`.

use super::Users;
use anyhow::Context;
use clap::Subcommand;
use std::io::{BufRead, IsTerminal};
use std::path::Path;

/// What can be done to a users file.
#[derive(Debug, Subcommand)]
pub enum UserVerb {
    /// Add a user, or change a password; it is read from the terminal or from standard input.
    Add {
        /// The user's name.
        name: String,
        /// Make a bearer token instead of a password and print it, once.
        #[arg(long)]
        token: bool,
    },
    /// Remove a user.
    Remove {
        /// The user's name.
        name: String,
    },
    /// List the users.
    List,
}

impl UserVerb {
    /// Does it to a users file.
    pub fn run(self, path: &Path) -> anyhow::Result<()> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).with_context(|| format!("{} cannot be made", directory.display()))?;
        }
        let mut users = Users::read(path)?;
        match self {
            UserVerb::List => {
                users.users.keys().for_each(|name| println!("{name}"));
                return Ok(());
            }
            UserVerb::Remove { name } => {
                users.users.remove(&name).with_context(|| format!("there is no user {name:?}"))?;
                println!("removed {name}");
            }
            UserVerb::Add { name, token: true } => println!("{}", users.new_token(&name)?),
            UserVerb::Add { name, token: false } => {
                let password = read_password()?;
                anyhow::ensure!(!password.is_empty(), "the password is empty");
                users.set_password(&name, password.as_bytes())?;
                println!("added {name}");
            }
        }
        users.write(path)?;
        Ok(())
    }
}

fn read_password() -> anyhow::Result<String> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        let first = rpassword::prompt_password("Password: ")?;
        anyhow::ensure!(first == rpassword::prompt_password("Again: ")?, "the two are not the same");
        return Ok(first);
    }
    let mut line = String::new();
    stdin.lock().read_line(&mut line).context("no password on standard input")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
