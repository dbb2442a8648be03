//! One operation on several VMs at once: each is tried, each failure is told, and the first one's code is the exit code.

use futures_util::future::join_all;

use crate::failure::{Failure, Result};
use crate::output::Output;

/// Runs `operation` for each name at the same time; returns what succeeded, in the order of the names.
///
/// The second part is the exit code: 0, or that of the first failure. Failures are told here.
pub(crate) async fn each<T>(
    names: &[String],
    output: &Output,
    operation: impl AsyncFn(&str) -> Result<T>,
) -> Result<(Vec<T>, u8)> {
    let results = join_all(names.iter().map(|name| operation(name))).await;
    let mut code = 0;
    let mut done = Vec::with_capacity(results.len());
    for result in results {
        match result {
            Ok(value) => done.push(value),
            Err(Failure::ReaderGone) => return Err(Failure::ReaderGone),
            Err(failure) => {
                let its = failure.tell(output.is_json());
                code = if code == 0 { its } else { code };
            }
        }
    }
    Ok((done, code))
}
