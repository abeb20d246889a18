//! Why a request was not served.

use crate::schema::{model, words};

words! {
    /// Kind of a refusal; each has one HTTP status.
    pub enum ErrorCode {
        BadRequest = "bad_request",
        Unauthorized = "unauthorized",
        Forbidden = "forbidden",
        NotFound = "not_found",
        MethodNotAllowed = "method_not_allowed",
        TooLarge = "too_large",
        WrongMediaType = "wrong_media_type",
        /// The route table has changed since the caller looked.
        RevisionMismatch = "revision_mismatch",
        /// Another operation is running; nothing is queued.
        OperationRunning = "operation_running",
        /// The operation is past the point of no return.
        TooLate = "too_late",
        /// A check forbids it.
        Refused = "refused",
        /// A mutation names no revision.
        RevisionMissing = "revision_missing",
        NotReady = "not_ready",
        Timeout = "timeout",
        Internal = "internal",
    }
}

impl ErrorCode {
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            ErrorCode::BadRequest => 400,
            ErrorCode::Unauthorized => 401,
            ErrorCode::Forbidden => 403,
            ErrorCode::NotFound => 404,
            ErrorCode::MethodNotAllowed => 405,
            ErrorCode::RevisionMismatch | ErrorCode::OperationRunning | ErrorCode::TooLate => 409,
            ErrorCode::TooLarge => 413,
            ErrorCode::WrongMediaType => 415,
            ErrorCode::Refused => 422,
            ErrorCode::RevisionMissing => 428,
            ErrorCode::Internal => 500,
            ErrorCode::NotReady => 503,
            ErrorCode::Timeout => 504,
        }
    }
}

model! {
    /// The body of every answer that is not a success.
    #[derive(Eq)]
    pub struct ApiError {
        pub code: ErrorCode,
        /// What is wrong.
        pub message: String,
        /// What to do.
        pub remedy: String,
    }
}

impl ApiError {
    pub fn new(code: ErrorCode, message: impl Into<String>, remedy: impl Into<String>) -> ApiError {
        ApiError { code, message: message.into(), remedy: remedy.into() }
    }

    pub fn bad_request(message: impl Into<String>, remedy: impl Into<String>) -> ApiError {
        ApiError::new(ErrorCode::BadRequest, message, remedy)
    }

    pub fn not_found(message: impl Into<String>, remedy: impl Into<String>) -> ApiError {
        ApiError::new(ErrorCode::NotFound, message, remedy)
    }

    pub fn refused(message: impl Into<String>, remedy: impl Into<String>) -> ApiError {
        ApiError::new(ErrorCode::Refused, message, remedy)
    }

    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(ErrorCode::Internal, message, "look into the log of Crossover")
    }

    /// 409: the table is at `found`, the caller has seen `expected`.
    #[must_use]
    pub fn revision_mismatch(expected: u64, found: u64) -> ApiError {
        let message = format!("The route table is at revision {found}, not {expected}.");
        ApiError::new(
            ErrorCode::RevisionMismatch,
            message,
            "read the status again and repeat if it is still wanted",
        )
    }

    /// 409: the operation `id` is running.
    #[must_use]
    pub fn operation_running(id: &str) -> ApiError {
        let message = format!("Operation {id} is running; operations are not queued.");
        ApiError::new(
            ErrorCode::OperationRunning,
            message,
            "wait for its end (`crossover watch`), or end it before SEAL (`crossover abort`)",
        )
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} Remedy: {}.", self.message, self.remedy.trim_end_matches('.'))
    }
}

impl std::error::Error for ApiError {}
