# What configuring says and leaves: cmake -DSOURCE=... -DWORK=... [-DCLANG=<clang++>] [-DTORCH=<LibTorch>] -P this file.

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

if(NOT TORCH)
  return()
endif()
set(REAL_ROOT ${TORCH})
include(${CMAKE_CURRENT_LIST_DIR}/torch/made_up_torch.cmake)
file(REMOVE_RECURSE ${WORK}/torch)
make_torch(${WORK}/torch/cpu 2.13.0 None)
make_torch(${WORK}/torch/cuda 2.13.0 "'13.0'")
make_torch(${WORK}/torch/old 2.7.1 None)
make_torch(${WORK}/torch/new 2.99.0 None)

# configure_torch(<made-up torch> <0: succeeds, 1: fails> <what the output must match> <cmake arguments>...)
function(configure_torch torch fails pattern)
  configure(result output -DAFT_TORCH=ON -DAFT_PROGRAMS=OFF -DAFT_TORCH_ROOT=${WORK}/torch/${torch} ${ARGN})
  if(result)
    set(result 1)
  endif()
  if(NOT result EQUAL fails OR NOT output MATCHES "${pattern}")
    message(SEND_ERROR "torch ${torch}, ${ARGN}: expected ${pattern} (failure: ${fails}), got (${result}): ${output}")
  endif()
endfunction()

# The operators and libaft_torch.so need none of what the programs need.
set(without "")
foreach(package AftOpenBLAS CLI11 GTest JPEG LibLZMA PNG Threads ZLIB nlohmann_json tomlplusplus)
  list(APPEND without -DCMAKE_DISABLE_FIND_PACKAGE_${package}=ON)
endforeach()
configure_torch(cpu 0 "LibTorch 2.13.0 \\(cpu\\)" ${without})

configure_torch(old 1 "Torch 2.7.1 \\([^)]*\\) is too old, 2.11 or later is needed: ")
configure_torch(new 0 "Note: torch 2.99.0 is newer than [0-9.]+, the newest tested with")

configure_torch(cpu 0 "AFT_CUDA=AUTO: no CUDA kernels, since LibTorch is a CPU build" -DAFT_CUDA=AUTO)
if(NOT EXISTS ${SOURCE}/.cache/cuda)
  configure_torch(cuda 0 "AFT_CUDA=AUTO: no CUDA kernels, since nvcc was not found" -DAFT_CUDA=AUTO
                  -DCMAKE_CUDA_COMPILER=NOTFOUND)
endif()
if(NVCC)
  configure_torch(cuda 0 "AFT_CUDA=AUTO: CUDA kernels for 90 by [^ ]*nvcc, since LibTorch is a build for CUDA 13.0"
                  -DAFT_CUDA=AUTO -DAFT_CUDA_ARCHITECTURES=90)
endif()
