//! Import and export: files of numpy, pyarrow, pandas and datasets (tests/golden/exchange, made by
//! tools/make_exchange_golden.py) become the shards that they should, and nothing damaged gets through unnoticed.

#[path = "exchange/annotate.rs"]
mod annotate;
#[path = "exchange/cli.rs"]
mod cli;
mod common;
#[path = "exchange/golden.rs"]
mod golden;
#[path = "exchange/hostile.rs"]
mod hostile;
#[path = "exchange/output.rs"]
mod output;
#[path = "exchange/support.rs"]
mod support;
