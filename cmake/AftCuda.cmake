# The CUDA language, and how every .cu of the project is compiled.

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "AFT_CUDA=ON needs nvcc, which was not found: put the CUDA toolkit's bin folder on the PATH, "
                      "pass -DCMAKE_CUDA_COMPILER=<path of nvcc>, or leave AFT_CUDA off")
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

# aft_use_cuda(<target>): its .cu files call constexpr functions of plain headers, and the build's output tells what each
# kernel takes: registers, shared memory, spills. 554: State<T>, T const, has a conversion to itself.
function(aft_use_cuda target)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-diag-suppress=554;-Xptxas=-v;-Xcompiler=-Wall,-Wextra>")
  target_link_libraries(${target} PUBLIC CUDA::cudart_static)
endfunction()
