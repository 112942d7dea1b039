"""Your own HTTP client under limits. Each is imported by its own name: `from tidegate.clients.httpx import AsyncTransport`."""
