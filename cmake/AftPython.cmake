# Sets AFT_PYTHON to the Python interpreter whose torch is built against and which runs the Python tests: the one given
# by -DAFT_PYTHON, else the one that scripts/setup chose, else python3 of the path. Empty: none.
# Sets AFT_PYTHON_TORCH to the CMake prefix of its torch, empty if it has none.

set(chosen ${PROJECT_SOURCE_DIR}/.cache/python)
if(NOT AFT_PYTHON AND EXISTS ${chosen})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${chosen})
  file(STRINGS ${chosen} AFT_PYTHON LIMIT_COUNT 1)
endif()
if(NOT AFT_PYTHON)
  find_program(AFT_PYTHON3 python3)
  mark_as_advanced(AFT_PYTHON3)
  if(AFT_PYTHON3)
    set(AFT_PYTHON ${AFT_PYTHON3})
  endif()
endif()

set(AFT_PYTHON_TORCH "")
if(AFT_PYTHON)
  # Without importing torch, which takes seconds.
  execute_process(
    COMMAND ${AFT_PYTHON} -c "import importlib.util as u, os; s = u.find_spec('torch'); \
print(os.path.join(os.path.dirname(s.origin), 'share', 'cmake') if s and s.origin else '', end='')"
    OUTPUT_VARIABLE AFT_PYTHON_TORCH
    ERROR_QUIET)
endif()
