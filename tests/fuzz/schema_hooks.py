"""What Schemathesis must know of this interface: safetensors bodies, and the one form of errors."""

from __future__ import annotations

import json
import struct

import schemathesis

from r2m.errors import TABLE

ROWS = {code.value: row for code, row in TABLE.items()}


@schemathesis.serializer("application/x-safetensors")
def safetensors(ctx, value):
    """Whatever was generated as the request in the metadata; bytes as they are."""
    if isinstance(value, bytes):
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    header = json.dumps({"__metadata__": {"request": text}}).encode()
    return struct.pack("<Q", len(header)) + header


@schemathesis.check
def one_form_of_errors(ctx, response, case):
    """Every refusal is of the table, says something, and is nobody's 500."""
    if response.status_code < 400:
        return
    error = response.json()["error"]
    row = ROWS[error["code"]]
    assert response.status_code == row.http, error
    assert error["retryable"] == row.retryable, error
    assert error["message"], error
    assert response.status_code < 500, error
