from groundthink.ops.wkv6.reference import wkv6_reference as wkv6_chunked
