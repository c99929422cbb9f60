"""Exit code 0 where the service answers /readyz with 200. The image has no curl; a proxy of the environment is no way
to oneself, so http.client, which knows none."""

import os
import sys
from http.client import HTTPConnection, HTTPException

if __name__ == "__main__":
    connection = HTTPConnection("127.0.0.1", int(os.environ.get("NAM_PORT", "8000")), timeout=4)
    try:
        connection.request("GET", "/readyz")
        sys.exit(connection.getresponse().status != 200)
    except (OSError, HTTPException) as error:
        sys.exit(f"not ready: {error}")
