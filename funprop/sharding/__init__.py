"""Params, optimizer state and batches over many devices, by JAX's own partitioner."""

from funprop.sharding.describe import ShardingTable, describe_sharding
from funprop.sharding.gathered import gathered
from funprop.sharding.ready import data_parallel_rules, fsdp_rules, tensor_parallel_rules
from funprop.sharding.rules import Rules, make_mesh, shardings
from funprop.sharding.shard import shard

__all__ = [
    "Rules",
    "ShardingTable",
    "data_parallel_rules",
    "describe_sharding",
    "fsdp_rules",
    "gathered",
    "make_mesh",
    "shard",
    "shardings",
    "tensor_parallel_rules",
]
