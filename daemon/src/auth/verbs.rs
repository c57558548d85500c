//! `user add`, `user remove`, `user list`.

use super::{Role, Users};
use crate::files;
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
        /// What the user may do in the cloud; repeats. Without it a token may push and a password may read.
        #[arg(long = "role", value_name = "ROLE")]
        roles: Vec<Role>,
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
            files::directory(directory).with_context(|| format!("{} cannot be made", directory.display()))?;
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
            UserVerb::Add { name, token, roles } => {
                if token {
                    println!("{}", users.new_token(&name)?);
                } else {
                    let password = read_password()?;
                    anyhow::ensure!(!password.is_empty(), "the password is empty");
                    users.set_password(&name, password.as_bytes())?;
                    println!("added {name}");
                }
                if let Some(user) = users.users.get_mut(&name).filter(|_| !roles.is_empty()) {
                    user.roles = roles;
                }
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
