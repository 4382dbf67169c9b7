"""The director's API: JSON over HTTP on a unix socket. `client` needs the standard library only, `server` aiohttp."""
