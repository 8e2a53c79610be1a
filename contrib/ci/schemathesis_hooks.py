"""What schemathesis cannot know of the admin API."""

import schemathesis


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """An Idempotency-Key names one request: under the key of another one, which schemathesis would send, the answer is 422, as it should be.
    tests/system/admin_changes.rs has what it does."""
    for item in raw_schema["paths"].values():
        for operation in item.values():
            operation["parameters"] = [p for p in operation.get("parameters", []) if p.get("name") != "Idempotency-Key"]
