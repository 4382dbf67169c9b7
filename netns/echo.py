"""What nginx cannot do: a TCP and UDP server that says who it is and whom it sees, then repeats what it got.

Run inside a namespace: `python -m netns.echo NAME PORT`. A datagram, and each line of a connection, is answered with
`NAME CLIENT-ADDRESS ` and the same bytes, as many as fit into a datagram.
"""

from __future__ import annotations

import asyncio
import socket
import sys

LONGEST = 65_483  # bytes of a datagram that nfqlb can rewrite, over IPv6 with its longer header


def greeting(name: str, address: str) -> bytes:
    return f"{name} {address.removeprefix('::ffff:')} ".encode()


async def serve(name: str, port: int) -> None:
    async def lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = greeting(name, writer.get_extra_info("peername")[0])
        try:
            while line := await reader.readline():
                writer.write(hello + line)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    datagrams.bind(("::", port))

    def repeat() -> None:
        data, about, _, peer = datagrams.recvmsg(65535, 64)
        address = about[0][2][:16]  # in6_pktinfo: the answer comes from where the question went
        where = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, address + bytes(4))
        datagrams.sendmsg([(greeting(name, peer[0]) + data)[:LONGEST]], [where], 0, peer)

    asyncio.get_running_loop().add_reader(datagrams, repeat)
    server = await asyncio.start_server(lines, None, port, backlog=1024)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
