//! What is wrong with a spec: every problem at once, each with its place, a sentence and, where there is one, the fix.

use std::fmt;

use innkeeper_api::ErrorKind;

/// One problem of a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecProblem {
    /// Line in the text, from 1.
    pub line: usize,
    /// Column in the text, in characters, from 1.
    pub column: usize,
    /// Path of the field, such as `disks.0.size`; empty if it is about the whole text.
    pub path: String,
    /// What is wrong, in one sentence.
    pub message: String,
    /// What would fix it.
    pub hint: Option<String>,
}

/// All problems of a spec, in the order of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecProblems {
    origin: String,
    problems: Vec<SpecProblem>,
}

impl std::error::Error for SpecProblems {}

impl SpecProblems {
    pub(super) fn new(origin: &str, mut problems: Vec<SpecProblem>) -> Self {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        SpecProblems {
            origin: origin.to_owned(),
            problems,
        }
    }

    /// Returns where the text came from, as it was given to the reader.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Returns the problems, in the order of the text; never none.
    pub fn problems(&self) -> &[SpecProblem] {
        &self.problems
    }
}

impl fmt::Display for SpecProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for SpecProblems {
    /// Writes a line per problem as compilers do, `vm.yaml:3:7: cpus: ...`, and its hint on a line of its own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let (line, column) = (problem.line, problem.column);
            write!(f, "{}:{line}:{column}: {problem}", self.origin)?;
            if let Some(hint) = &problem.hint {
                write!(f, "\n  hint: {hint}")?;
            }
        }
        Ok(())
    }
}

impl From<SpecProblems> for crate::Error {
    fn from(problems: SpecProblems) -> Self {
        let count = match problems.problems.len() {
            1 => "a problem".to_owned(),
            count => format!("{count} problems"),
        };
        // A spec that was put together from flags has no file to name.
        let name = match problems.origin.as_str() {
            "spec" => String::new(),
            origin => format!(" {origin}"),
        };
        let message = format!("the spec{name} has {count}");
        crate::Error::new(ErrorKind::BadInput, message).with_source(problems)
    }
}
