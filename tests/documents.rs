//! What the programs print about themselves: help, man pages, completions. None may lack a flag.

mod common;

use std::collections::BTreeSet;
use std::io::pipe;
use std::process::{Command, Stdio};

use common::command;

#[cfg(feature = "client")]
const PROGRAMS: [&str; 2] = [
    env!("CARGO_BIN_EXE_echo-server"),
    env!("CARGO_BIN_EXE_echo-client"),
];
#[cfg(not(feature = "client"))]
const PROGRAMS: [&str; 1] = [env!("CARGO_BIN_EXE_echo-server")];

const SHELLS: [&str; 5] = ["bash", "elvish", "fish", "powershell", "zsh"];

fn stdout(command: &mut Command) -> String {
    let output = command.output().expect("the program can be spawned");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{stderr}");
    String::from_utf8(output.stdout).expect("it is text")
}

/// The long flags in a help text.
fn flags(help: &str) -> BTreeSet<String> {
    let words = help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    words
        .filter(|word| word.starts_with("--") && word.len() > 2)
        .map(str::to_owned)
        .collect()
}

/// The flags of a program and of its commands.
fn all_flags(program: &str) -> BTreeSet<String> {
    let help = stdout(command(program).arg("--help"));
    let mut all = flags(&help);
    if help.contains("Commands:") {
        for name in ["test", "bench"] {
            all.append(&mut flags(&stdout(command(program).args([name, "--help"]))));
        }
    }
    assert!(all.len() > 5, "{all:?}");
    all
}

#[test]
fn the_help_ends_with_examples_and_fits_a_terminal() {
    for program in PROGRAMS {
        let help = stdout(command(program).arg("--help"));
        let (_, examples) = help.split_once("\nExamples:\n").expect("it has examples");
        assert!(
            examples
                .lines()
                .filter(|line| line.starts_with("  echo-"))
                .count()
                >= 2,
            "{help}"
        );
        if program == PROGRAMS[0] {
            for words in ["-vv: the bytes too", "-qqq: nothing", "Exit codes: 0"] {
                assert!(help.contains(words), "{help}");
            }
        }
        let widest = help.lines().map(|line| line.chars().count()).max();
        assert!(widest.is_some_and(|widest| widest <= 100), "{help}");
    }
}

/// Whether `text` has `word`, and not only as the beginning of a longer one.
fn has_word(text: &str, word: &str) -> bool {
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '-');
    text.match_indices(word)
        .any(|(place, _)| ends(&text[place + word.len()..]))
}

#[test]
fn the_man_page_has_every_flag() {
    for program in PROGRAMS {
        let page = stdout(command(program).arg("--man"))
            .replace("\\fR", "")
            .replace('\\', "");
        assert!(page.contains(".TH echo-"), "{page}");
        for flag in all_flags(program) {
            assert!(has_word(&page, &flag), "{flag}: {page}");
        }
        for section in [".SH EXAMPLES\n", ".SH NOTES\n"] {
            assert!(page.contains(section), "{page}");
        }
        let is_server = page.contains(".TH echo-server");
        assert_eq!(
            page.contains(".SH ENVIRONMENT\n.TP\nECHO_SERVER_HOST\n"),
            is_server,
            "{page}"
        );
        assert_eq!(page.contains("Sets --busy-poll."), is_server, "{page}");
    }
}

#[test]
fn the_completions_for_every_shell_have_every_flag() {
    for program in PROGRAMS {
        let flags = all_flags(program);
        for shell in SHELLS {
            let script = stdout(command(program).args(["--completions", shell]));
            for flag in &flags {
                // fish writes them without the dashes.
                let fish = format!("-l {}", flag.trim_start_matches('-'));
                let name = if shell == "fish" { &fish } else { flag };
                assert!(has_word(&script, name), "{shell}, {flag}: {script}");
            }
        }
    }
}

#[test]
fn environment_variables_do_not_affect_documents() {
    let page = stdout(command(PROGRAMS[0]).arg("--man"));
    let variables: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("ECHO_SERVER_"))
        .collect();
    assert!(variables.len() > 5, "{page}");
    for program in PROGRAMS {
        for document in ["--man", "--completions=bash"] {
            let document_alone = stdout(command(program).arg(document));
            let mut command = command(program);
            command.envs(variables.iter().map(|variable| (variable, "invalid")));
            assert_eq!(
                stdout(command.args([document, "--port", "7"])),
                document_alone
            );
        }
    }
}

#[test]
fn the_readme_has_every_option_of_the_server() {
    let readme = include_str!("../README.md");
    let (_, options) = readme
        .split_once("\n## Options\n")
        .expect("it has such a section");
    let (options, _) = options.split_once("\n## ").expect("it is not the last one");
    let mut flags = all_flags(PROGRAMS[0]);
    // Those it has by their short names.
    assert!(flags.remove("--verbose") && flags.remove("--quiet"));
    for flag in flags {
        assert!(has_word(options, &flag), "{flag}");
    }
}

/// In a real bash, since it is the script's paths that were wrong once, not its words.
#[test]
#[cfg(all(target_os = "linux", feature = "client"))]
fn bash_completes_the_flags_of_a_command() {
    let program = env!("CARGO_BIN_EXE_echo-client");
    let script = stdout(command(program).args(["--completions", "bash"]));
    let ask = r#"
        COMP_WORDS=(echo-client bench --mo) COMP_CWORD=2
        _echo__client echo-client --mo bench
        echo "${COMPREPLY[@]}""#;
    let answer = stdout(command("bash").args(["-c", &format!("{script}\n{ask}")]));
    assert_eq!(answer.trim(), "--mode");
}

#[test]
fn a_pager_that_leaves_early_is_no_failure() {
    for arguments in [
        &["--man"][..],
        &["--completions", "zsh"],
        &["--completions", "fish"],
    ] {
        for program in PROGRAMS {
            let (reader, writer) = pipe().expect("a pipe can be created");
            drop(reader);
            let mut command = command(program);
            let output = command
                .args(arguments)
                .stdout(writer)
                .stderr(Stdio::piped())
                .output();
            let output = output.expect("the program can be spawned");
            assert!(
                output.status.success() && output.stderr.is_empty(),
                "{output:?}"
            );
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_told() {
    let completions = SHELLS.map(|shell| format!("--completions={shell}"));
    for program in PROGRAMS {
        for document in completions.iter().map(String::as_str).chain(["--man"]) {
            let full = std::fs::File::options()
                .write(true)
                .open("/dev/full")
                .expect("it is there");
            let output = command(program).arg(document).stdout(full).output();
            let output = output.expect("the program can be spawned");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            assert!(stderr.contains("cannot write to stdout: "), "{stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
        }
    }
}
