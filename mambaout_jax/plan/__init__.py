"""Memory, traffic, time and cost of a run on TPUs, estimated by the TPU compiler."""
