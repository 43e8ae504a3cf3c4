//! Import and export: files of numpy, pyarrow, pandas and datasets (tests/golden/convert, made by
//! tools/make_convert_golden.py) become the shards that they should, and nothing damaged gets through unnoticed.

#[path = "convert/annotate.rs"]
mod annotate;
#[path = "convert/cli.rs"]
mod cli;
mod common;
#[path = "convert/golden.rs"]
mod golden;
#[path = "convert/hostile.rs"]
mod hostile;
#[path = "convert/output.rs"]
mod output;
#[path = "convert/support.rs"]
mod support;
