# The CUDA language, and how every .cu of the project is compiled.

include(CheckLanguage)
check_language(CUDA)
# What scripts/setup --cuda brought serves where no other nvcc is to be found.
set(brought ${PROJECT_SOURCE_DIR}/.cache/cuda/nvidia/cu13/bin/nvcc)
if(NOT CMAKE_CUDA_COMPILER AND EXISTS ${brought})
  set(CMAKE_CUDA_COMPILER ${brought})
endif()
if(AFT_CUDA STREQUAL "AUTO")
  if(NOT AFT_TORCH OR AftTorch_BUILD STREQUAL "cpu")
    set(AFT_CUDA OFF)
    message(STATUS "AFT_CUDA=AUTO: no CUDA kernels, since LibTorch is a CPU build")
  elseif(NOT CMAKE_CUDA_COMPILER)
    set(AFT_CUDA OFF)
    message(STATUS "AFT_CUDA=AUTO: no CUDA kernels, since nvcc was not found (the bin folder of a toolkit on the PATH)")
  else()
    set(AFT_CUDA ON)
    message(STATUS "AFT_CUDA=AUTO: CUDA kernels for ${AFT_CUDA_ARCHITECTURES} by ${CMAKE_CUDA_COMPILER}, since "
                   "LibTorch is a build for CUDA ${AftTorch_BUILD}")
  endif()
  if(NOT AFT_CUDA)
    return()
  endif()
endif()
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "AFT_CUDA=ON needs nvcc, which was not found: put the CUDA toolkit's bin folder on the PATH, "
                      "pass -DCMAKE_CUDA_COMPILER=<path of nvcc>, run scripts/setup --cuda, or leave AFT_CUDA off")
endif()
set(CMAKE_CUDA_ARCHITECTURES ${AFT_CUDA_ARCHITECTURES})
if(AFT_CCACHE AND NOT DEFINED CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${AFT_CCACHE})
endif()
enable_language(CUDA)
# CMake 3.25 does not know that nvcc has C++20, which .cu files take from CMAKE_CXX_STANDARD.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
endif()
find_package(CUDAToolkit REQUIRED)
find_program(AFT_PYTHON3 python3 REQUIRED)

# aft_use_cuda(<target>): its .cu files call constexpr functions of plain headers. What ptxas says of each kernel is
# left in ptxas.tsv in the build folder. 554: State<T>, T const, has a conversion to itself.
function(aft_use_cuda target)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-diag-suppress=554;-Xptxas=-v;-Xcompiler=-Wall,-Wextra>")
  # Linked alone, so that sources for the CPU are compiled as without CUDA: nvcc knows its headers.
  target_link_libraries(${target} INTERFACE $<LINK_ONLY:CUDA::cudart_static>)
  set(ptxas ${AFT_PYTHON3} ${PROJECT_SOURCE_DIR}/cmake/ptxas.py)
  set_property(TARGET ${target} PROPERTY CUDA_COMPILER_LAUNCHER ${ptxas} compile ${CMAKE_CUDA_COMPILER_LAUNCHER})
  add_custom_command(TARGET ${target} POST_BUILD COMMAND ${ptxas} collect ${PROJECT_BINARY_DIR}/ptxas.tsv
                                                         $<TARGET_OBJECTS:${target}>
                     COMMAND_EXPAND_LISTS VERBATIM)
endfunction()

# aft_cuda_architectures(<result variable>): what AFT_CUDA_ARCHITECTURES gives, as "80, 90, PTX 90"
function(aft_cuda_architectures result)
  set(machine "")
  set(ptx "")
  foreach(entry IN LISTS AFT_CUDA_ARCHITECTURES)
    string(REGEX REPLACE "-(real|virtual)$" "" name "${entry}")
    if(NOT entry MATCHES "-virtual$")
      list(APPEND machine ${name})
    endif()
    if(NOT entry MATCHES "-real$")
      list(APPEND ptx "PTX ${name}")
    endif()
  endforeach()
  list(JOIN machine ", " text)
  foreach(name IN LISTS ptx)
    string(APPEND text ", ${name}")
  endforeach()
  string(REGEX REPLACE "^, " "" text "${text}")
  set(${result} "${text}" PARENT_SCOPE)
endfunction()
