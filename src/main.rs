//! Arguments, dispatch.

fn main() -> anyhow::Result<()> {
    sq_agent::cli::proxy::run()
}
