# FindAftTorch.cmake against made-up LibTorch folders: cmake -DMODULE_DIR=... -DREAL_ROOT=... -DWORK=... -P this file.

include(${CMAKE_CURRENT_LIST_DIR}/made_up_torch.cmake)

# expect(<what the output must match> <0: succeeds, 1: fails> <cmake arguments>...)
function(expect pattern fails)
  file(REMOVE_RECURSE ${WORK}/build)
  execute_process(COMMAND ${CMAKE_COMMAND} -S ${WORK}/project -B ${WORK}/build -DCMAKE_MODULE_PATH=${MODULE_DIR} ${ARGN}
                  OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE result)
  if(result)
    set(result 1)
  endif()
  # CMake wraps its messages.
  string(REGEX REPLACE "[ \n]+" " " output "${output}")
  if(NOT result EQUAL fails OR NOT output MATCHES "${pattern}")
    message(SEND_ERROR "${ARGN}: expected ${pattern} (failure: ${fails}), got (failure: ${result})\n${output}")
  endif()
endfunction()

file(REMOVE_RECURSE ${WORK})
file(WRITE ${WORK}/project/CMakeLists.txt [=[
cmake_minimum_required(VERSION 3.25)
project(find_torch LANGUAGES CXX)
find_package(AftTorch 2.11 REQUIRED)
get_target_property(library AftTorch::torch IMPORTED_LOCATION)
message(STATUS "found=${AftTorch_VERSION} build=${AftTorch_BUILD} library=${library} openmp=${AftTorch_OPENMP}")
]=])
make_torch(${WORK}/cpu 2.13.0 None)
make_torch(${WORK}/cuda 2.11.0 "'13.0'")
make_torch(${WORK}/old 2.7.1 None)

expect("found=2.13.0 build=cpu library=[^ ]*/cpu/lib/libtorch_cpu.so" 0 -DAFT_TORCH_ROOT=${WORK}/cpu)
expect("found=2.11.0 build=13.0 library=[^ ]*/cuda/lib/libtorch_cpu.so" 0 -DAFT_TORCH_ROOT=${WORK}/cuda)
expect("found=2.11.0 build=13.0" 0 -DCMAKE_PREFIX_PATH=${WORK}/cuda/share/cmake -DAFT_PYTHON=${WORK}/none)
expect("found=2.11.0 build=13.0" 0 -DTorch_DIR=${WORK}/cuda/share/cmake/Torch -DAFT_PYTHON=${WORK}/none)
expect("found unsuitable version \"2.7.1\", but required is at least \"2.11\"|Found unsuitable version \"2.7.1\"" 1
       -DAFT_TORCH_ROOT=${WORK}/old)
expect("LibTorch was not found: install the wheel torch and pass" 1 -DAFT_TORCH_ROOT=${WORK}/nowhere)
