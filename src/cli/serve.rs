//! `sidelens serve`: the service itself.

use std::{
    io::{self, Write},
    pin::pin,
};

use super::{CliError, ConfigArgs, decode_worker, descriptors};
use crate::{
    app::{self, AppError, Foundation},
    cache,
    config::Config,
    shutdown,
    telemetry::{Traces, logging},
};

/// Serves until SIGTERM, SIGINT or SIGHUP.
pub(super) fn run(args: ConfigArgs) -> Result<(), CliError> {
    let config = args.load()?;
    let traces = Traces::start(&config.traces)?;
    logging::init(&config.log, traces.as_ref())?;
    cache::check_file(&config.cache)?;
    descriptors::raise_limit();
    // Batches are formed here, and little else: requests are read and answered on actix's own threads. With more of these
    // one that wakes has another woken to look for work, on a core where a search is computed.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let outcome = runtime.block_on(serve(config));
    if let Some(traces) = traces {
        traces.shut_down();
    }
    // A model still loading, or a decoder still busy, must not hold up the exit.
    runtime.shutdown_background();
    Ok(outcome?)
}

async fn serve(config: Config) -> Result<(), AppError> {
    let bound = app::bind(&config.server)?;
    let mut stop = pin!(shutdown::requested()?);
    let foundation = Foundation::lay(config, decode_worker::command)?;
    let models = tokio::select! {
        models = app::load_models(foundation.config()) => models?,
        () = &mut stop => return Ok(()),
    };
    let app = foundation.build(models, bound.listen()?)?;
    // The one line on stdout: scripts read the port from it. Where it cannot be written, there is a service all the same.
    let _ = writeln!(io::stdout(), "listening on {}", app.url());
    if let Some(address) = app.admin_address() {
        tracing::info!(%address, "metrics and admin");
    }
    app.run_until_stopped(stop).await
}
