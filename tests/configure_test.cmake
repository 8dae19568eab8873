# What configuring says and leaves: cmake -DSOURCE=... -DWORK=... [-DCLANG=<clang++> -DTORCH=<LibTorch>] -P this file.

# configure(<result variable> <output variable> <cmake arguments>...)
function(configure result output)
  file(REMOVE_RECURSE ${WORK}/build)
  execute_process(COMMAND ${CMAKE_COMMAND} -G Ninja -S ${SOURCE} -B ${WORK}/build -DAFT_TESTS=OFF
                          -DCMAKE_PREFIX_PATH=${CMAKE_PREFIX_PATH} -DPKG_CONFIG_EXECUTABLE=${PKG_CONFIG_EXECUTABLE} ${ARGN}
                  OUTPUT_VARIABLE text ERROR_VARIABLE text RESULT_VARIABLE code)
  string(REGEX REPLACE "[ \n]+" " " text "${text}")  # CMake wraps its messages
  set(${output} "${text}" PARENT_SCOPE)
  set(${result} "${code}" PARENT_SCOPE)
endfunction()

# Warnings are on for everybody, and errors only on demand.
foreach(strict "" ON)
  configure(result output -DAFT_TORCH=OFF -DCMAKE_COMPILE_WARNING_AS_ERROR=${strict})
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${output}")
  endif()
  file(READ ${WORK}/build/compile_commands.json commands)
  string(REGEX MATCHALL "\"command\": [^\n]*" commands "${commands}")
  list(LENGTH commands count)
  foreach(flag -Wall -Wextra -Wshadow -Werror)
    set(with ${commands})
    list(FILTER with INCLUDE REGEX " ${flag} ")
    list(LENGTH with flagged)
    set(expected ${count})
    if(flag STREQUAL "-Werror" AND NOT strict)
      set(expected 0)
    endif()
    if(NOT flagged EQUAL expected OR count LESS 20)
      message(SEND_ERROR "CMAKE_COMPILE_WARNING_AS_ERROR='${strict}': ${flag} in ${flagged} of ${count} commands, "
                         "expected ${expected}")
    endif()
  endforeach()
endforeach()

# What clang++ lacks is said in one sentence; as if it had no headers at all.
if(CLANG AND TORCH)
  configure(result output -DCMAKE_CXX_COMPILER=${CLANG} -DAFT_TORCH=ON -DAFT_TORCH_ROOT=${TORCH}
            -DCMAKE_REQUIRED_FLAGS=-nostdinc)
  if(result EQUAL 0 OR NOT output MATCHES "apt-get install libomp-[0-9]+-dev`, or run scripts/setup \\(with --clang")
    message(SEND_ERROR "clang++ without omp.h: expected the package to install, got (${result}): ${output}")
  endif()
endif()
