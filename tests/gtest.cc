// Nothing: aft_gtest is there for its precompiled header, and a library needs a source.
