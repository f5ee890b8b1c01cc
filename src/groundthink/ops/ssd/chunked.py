from groundthink.ops.ssd.reference import ssd_reference as ssd_chunked
