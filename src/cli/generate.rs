//! The documents that a binary generates from its command line: the man page and the shell
//! completions.

use std::io::{self, ErrorKind, Write};

use clap::{Args, Command, CommandFactory, FromArgMatches};
use clap_complete::{Generator, Shell};
use clap_mangen::Man;

/// The options that print a document.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Documents")]
pub struct GenerateArgs {
    /// Prints the completions for a shell
    #[arg(long, value_name = "SHELL")]
    pub completions: Option<Shell>,

    /// Prints the man page
    #[arg(long, conflicts_with = "completions")]
    pub man: bool,
}

/// Prints the document that the command line asks for. Returns whether it asks for one.
///
/// Ignores the environment variables, so that an invalid value does not prevent a document.
///
/// # Errors
/// Returns an error message if stdout cannot be written to.
pub fn print_document<Program: CommandFactory>() -> Result<bool, String> {
    let program = Program::command().mut_args(|arg| arg.env(None::<&str>));
    let matches = program.try_get_matches();
    match matches.and_then(|matches| GenerateArgs::from_arg_matches(&matches)) {
        Ok(args) => args.print::<Program>(),
        // The command line asks for the help, or is invalid: that is for `cli::parse`.
        Err(_) => Ok(false),
    }
}

impl GenerateArgs {
    fn print<Program: CommandFactory>(&self) -> Result<bool, String> {
        if self.completions.is_none() && !self.man {
            return Ok(false);
        }
        let mut program = Program::command();
        program.set_bin_name(program.get_name().to_owned());
        program.build();
        match self.write(&program) {
            // The reader of stdout, such as a pager, has closed it early.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(format!("cannot write to stdout: {error}"))
            }
            _ => Ok(true),
        }
    }

    fn write(&self, program: &Command) -> io::Result<()> {
        let mut document = Vec::new();
        match self.completions {
            Some(shell) => write_completions(program, shell, &mut document)?,
            None => write_man_page(program, &mut document)?,
        }
        let mut stdout = io::stdout();
        stdout.write_all(&document)?;
        stdout.flush()
    }
}

/// Writes the completions. For bash it repairs a name that `clap_complete` writes in two ways, so
/// that the commands of a binary with a hyphen have completions too (clap-rs/clap#6421).
fn write_completions(program: &Command, shell: Shell, out: &mut impl Write) -> io::Result<()> {
    let mut script = Vec::new();
    shell.try_generate(program, &mut script)?;
    let name = program.get_name().replace('-', "__subcmd__");
    let script =
        String::from_utf8_lossy(&script).replace(&name, &program.get_name().replace('-', "__"));
    out.write_all(script.as_bytes())
}

/// Writes one man page, in which each command has a section.
fn write_man_page(program: &Command, out: &mut impl Write) -> io::Result<()> {
    let page = Man::new(program.clone());
    page.render_title(out)?;
    page.render_name_section(out)?;
    page.render_synopsis_section(out)?;
    page.render_description_section(out)?;
    page.render_options_section(out)?;
    for command in program
        .get_subcommands()
        .filter(|command| command.get_name() != "help")
    {
        writeln!(out, ".SH \"{} {}\"", program.get_name(), command.get_name())?;
        let own = command.clone().mut_args(|arg| {
            let is_shown_above = arg.is_global_set();
            arg.hide(is_shown_above)
        });
        let section = Man::new(own);
        let mut text = Vec::new();
        section.render_description_section(&mut text)?;
        section.render_options_section(&mut text)?;
        // These sections become subsections of the command's section.
        let text = String::from_utf8_lossy(&text).replace(".SH ", ".SS ");
        out.write_all(text.as_bytes())?;
    }
    let variables = program
        .get_arguments()
        .filter_map(|arg| arg.get_env().zip(arg.get_long()));
    for (number, (variable, flag)) in variables.enumerate() {
        if number == 0 {
            writeln!(out, ".SH ENVIRONMENT")?;
        }
        let flag = flag.replace('-', "\\-");
        writeln!(out, ".TP\n{}\nSets \\-\\-{flag}.", variable.display())?;
    }
    let help = program
        .get_after_help()
        .map(ToString::to_string)
        .unwrap_or_default();
    let (examples, notes) = help.split_once("\n\n").unwrap_or((&help, ""));
    // With .nf the lines stay as they are.
    let examples = examples.lines().skip(1).collect::<Vec<_>>().join("\n");
    writeln!(
        out,
        ".SH EXAMPLES\n.nf\n{}\n.fi",
        examples.replace('-', "\\-")
    )?;
    writeln!(
        out,
        ".SH NOTES\n{}",
        notes.replace('-', "\\-").replace("\n\n", "\n.PP\n")
    )?;
    page.render_version_section(out)
}
