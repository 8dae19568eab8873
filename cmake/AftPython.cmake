# Sets AFT_PYTHON to the Python interpreter whose torch is built against and which runs the Python tests: the one given
# by -DAFT_PYTHON, else the one that scripts/setup chose, else python3 of the path.

set(chosen ${PROJECT_SOURCE_DIR}/.cache/python)
if(NOT AFT_PYTHON AND EXISTS ${chosen})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${chosen})
  file(STRINGS ${chosen} AFT_PYTHON LIMIT_COUNT 1)
endif()
if(NOT AFT_PYTHON)
  find_program(AFT_PYTHON python3 DOC "Python whose torch is used, and that runs the Python tests")
endif()
