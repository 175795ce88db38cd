"""Talks to a tracker knowing nothing but its address; prints what it saw as one JSON document."""

import json
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

channel = grpc.insecure_channel(sys.argv[1])
grpc.channel_ready_future(channel).result(timeout=30)
database = ProtoReflectionDescriptorDatabase(channel)
pool = DescriptorPool(database)


def call(service, method, **fields):
    """One call by name; the answer is a message, or the first message of a stream."""
    described = pool.FindServiceByName(service).FindMethodByName(method)
    request, response = GetMessageClass(described.input_type), GetMessageClass(described.output_type)
    kind = channel.unary_stream if described.server_streaming else channel.unary_unary
    stub = kind(
        f"/{service}/{method}",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    answer = stub(request(**fields), timeout=30)
    return next(answer) if described.server_streaming else answer


def mistake(service, method, **fields):
    try:
        call(service, method, **fields)
    except grpc.RpcError as error:
        return {"code": error.code().name, "details": error.details()}
    return {"code": "OK", "details": ""}


def unknown_method():
    try:
        channel.unary_unary("/drizzle.v1.Tracker/NoSuchMethod")(b"", timeout=30)
    except grpc.RpcError as error:
        return {"code": error.code().name, "details": error.details() or error.code().name}


def readable(message):
    return MessageToDict(message, preserving_proto_field_name=True)


TRACKER = "drizzle.v1.Tracker"
health = call("grpc.health.v1.Health", "Check")
status = health.DESCRIPTOR.fields_by_name["status"].enum_type.values_by_number[health.status].name
json.dump(
    {
        "services": sorted(database.get_services()),
        "health": status,
        "files": readable(call(TRACKER, "ListFiles")),
        "locations": readable(call(TRACKER, "FileLocations", name="foo")),
        "mistakes": {
            "a name that nobody registered": mistake(TRACKER, "FileLocations", name="bar"),
            "a name that is a path upwards": mistake(TRACKER, "FileLocations", name="../foo"),
            "no name": mistake(TRACKER, "FileLocations"),
            "a page token that was never issued": mistake(TRACKER, "ListFiles", page_token="\x00"),
            "a peer id that is none": mistake(TRACKER, "RegisterPeer", peer_id="me", address="10.0.0.1:7401"),
            "a lease that is not known": mistake(TRACKER, "RenewLease", lease_id=1),
            "a watch of a name that nobody registered": mistake(TRACKER, "WatchFile", name="bar"),
            "a method that does not exist": unknown_method(),
        },
    },
    sys.stdout,
)
