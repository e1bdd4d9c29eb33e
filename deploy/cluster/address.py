"""Where Ray is: what an address means, and whether anybody answers there. Asked before Ray is, which waits for many minutes."""

import os
import socket

from deploy.cluster.environment import EnvironmentProblemError

ANSWER_S = 5.0
HEAD_PORT, DASHBOARD_PORT = 6379, 8265


def named_address(address: str | None) -> str | None:
    """The address that a command was given, else RAY_ADDRESS, else None."""
    return address or os.environ.get("RAY_ADDRESS") or None


def ray_to_join(address: str | None) -> str:
    """HOST:PORT of the Ray at `address`, or at RAY_ADDRESS, that answers; `auto` finds one on this machine.

    Raises EnvironmentProblemError, within seconds, where none does, and for an address of another kind.
    """
    named = named_address(address) or "auto"
    said = _said(address, named)
    if "://" in named:
        host = named.partition("://")[2].partition("/")[0].rpartition(":")[0] or "HEAD"
        raise EnvironmentProblemError(
            f"{said} is not where a driver joins Ray: name HOST:PORT, most often {host}:{HEAD_PORT}, on a node of the "
            f"cluster, or use `bvblend submit` from outside, with http://{host}:{DASHBOARD_PORT}"
        )
    if named == "auto":
        named = _on_this_machine()
    host, _, port = named.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal():
        raise EnvironmentProblemError(f"{said} is no address of a Ray: write HOST:PORT")
    try:
        socket.create_connection((host, int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise EnvironmentProblemError(f"no Ray cluster answers at {said}: {error}; {_remedy(address)}") from None
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return named  # Ray has the certificates, and says what is wrong with them
    if not _speaks_grpc(named):
        raise EnvironmentProblemError(
            f"what answers at {said} is no Ray: Ray's own port is meant, most often {HEAD_PORT}, and not its dashboard's"
        )
    if _refuses_our_token(named):
        raise EnvironmentProblemError(
            f"the Ray cluster at {said} does not take the token of this environment: set RAY_AUTH_MODE=token and the cluster's own "
            "RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH"
        )
    return named


def dashboard_of(address: str) -> str:
    """Where `bvblend submit` sends a job. Raises EnvironmentProblemError for an address that is not a dashboard's."""
    if address.startswith(("http://", "https://")):
        return address
    host = address.partition("://")[2] or address
    host = (host.rpartition(":")[0] or host) if host != "auto" else "HEAD"
    raise EnvironmentProblemError(
        f"{_said(address if address != os.environ.get('RAY_ADDRESS') else None, address)} is not the dashboard of a Ray cluster, "
        f"which is where jobs are sent: --address http://{host}:{DASHBOARD_PORT}; `bvblend train` on a node of it joins it directly"
    )


def _said(address: str | None, named: str) -> str:
    return named if address else f"{named} (RAY_ADDRESS)" if os.environ.get("RAY_ADDRESS") else named


def _remedy(address: str | None) -> str:
    return "start it there, or name another --address" if address else "unset RAY_ADDRESS, and a run starts its own Ray"


def _on_this_machine() -> str:
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found: str | None = canonicalize_bootstrap_address("auto")
    except ConnectionError:
        found = None
    if found is None:
        raise EnvironmentProblemError("no Ray runs on this machine, which `auto` means: name its HOST:PORT")
    return found


def _speaks_grpc(address: str) -> bool:
    """Whether what listens shakes hands as every port of Ray does; no token is needed for that."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def _refuses_our_token(address: str) -> bool:
    """Whether Ray there says so of what it is asked with our token, or without any. Ray's own client asks again for most of a minute."""
    import grpc
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
    from ray.exceptions import AuthenticationError

    try:
        token = get_auth_headers_if_auth_enabled({})
    except AuthenticationError:  # a token is wanted here, and there is none
        return True
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(
                b"", timeout=ANSWER_S, metadata=tuple(token.items())
            )
        except grpc.RpcError as error:
            return error.code() == grpc.StatusCode.UNAUTHENTICATED  # anything else is for Ray to say
    return False
