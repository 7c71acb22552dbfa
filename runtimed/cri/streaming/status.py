"""The end of an exec as Kubernetes has it: metav1.Status as JSON on the error channel."""

import json


def success() -> bytes:
    return json.dumps({"metadata": {}, "status": "Success"}).encode()


def exit_code(code: int) -> bytes:
    """Return the status of a command that ended with *code*."""
    if code == 0:
        return success()
    fields = {
        "metadata": {},
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }
    return json.dumps(fields).encode()


def failure(message: str) -> bytes:
    fields = {"metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": 500}
    return json.dumps(fields).encode()
