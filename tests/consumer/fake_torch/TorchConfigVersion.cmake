# A torch that nobody has, for the test that another version than the one built for is refused.
set(PACKAGE_VERSION 9.9.9)
set(PACKAGE_VERSION_COMPATIBLE TRUE)
