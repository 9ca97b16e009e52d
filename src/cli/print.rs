//! What commands say. The standard library's macros panic where nobody reads any more or the disk is full; these, which take
//! their names in all of the command line, do not.

use std::{
    fmt,
    io::{self, ErrorKind, Write},
};

use crate::shutdown;

/// What a shell reports for a program that writes to where nobody reads: 128 + SIGPIPE.
const EXIT_UNREAD: u8 = 141;

macro_rules! print {
    ($($words:tt)*) => { $crate::cli::print::out(format_args!($($words)*)) };
}

macro_rules! println {
    ($($words:tt)*) => { $crate::cli::print::out(format_args!("{}\n", format_args!($($words)*))) };
}

macro_rules! eprintln {
    ($($words:tt)*) => { $crate::cli::print::aside(format_args!("{}\n", format_args!($($words)*))) };
}

/// Writes to standard output, or ends the process: quietly once its reader has had enough, as `head` has, and otherwise with
/// the reason.
pub(super) fn out(words: fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    match out.write_fmt(words).and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => shutdown::exit(EXIT_UNREAD),
        Err(error) => {
            aside(format_args!("sidelens: cannot write to standard output: {error}\n"));
            shutdown::exit(1);
        }
    }
}

/// Writes to standard error, what it takes.
pub(super) fn aside(words: fmt::Arguments<'_>) {
    let _ = io::stderr().write_fmt(words);
}
