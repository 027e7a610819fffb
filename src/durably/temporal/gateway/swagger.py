"""A page that shows the gateway's OpenAPI document with Swagger UI (https://swagger.io/tools/swagger-ui/)."""

import html
import json

VERSION = "5.35.0"
_CDN = f"https://cdn.jsdelivr.net/npm/swagger-ui-dist@{VERSION}"
_INTEGRITY = {
    "swagger-ui.css": "sha384-WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I",
    "swagger-ui-bundle.js": "sha384-gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9",
}
"""Of the files in the npm package ``swagger-ui-dist`` of that version: a browser runs no others from the CDN."""


def swagger_page(*, title: str, assets: str | None) -> bytes:
    """``assets`` is the URL of the app's own copy of the package; ``None`` is the CDN."""
    style, script = (_source(name, assets) for name in _INTEGRITY)
    options = json.dumps({"url": "openapi.json", "dom_id": "#swagger-ui", "deepLinking": True})
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="stylesheet" href={style}>
</head>
<body>
<div id="swagger-ui"></div>
<script src={script}></script>
<script>SwaggerUIBundle({options})</script>
</body>
</html>
""".encode()


def _source(name: str, assets: str | None) -> str:
    if assets is not None:
        return f'"{html.escape(assets.rstrip("/"))}/{name}"'
    return f'"{_CDN}/{name}" integrity="{_INTEGRITY[name]}" crossorigin="anonymous"'
