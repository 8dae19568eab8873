# Finds LibTorch inside the Python wheel (or an unpacked LibTorch) and gives the imported target AftTorch::torch.
#
# Torch's own TorchConfig.cmake is not run: that of a CUDA build stops where no CUDA toolkit is installed, and this
# project's torch layer needs the CPU libraries alone. Those are in every build, so one way serves both.
#
# Looked at, in this order: AFT_TORCH_ROOT (the folder holding include/ and lib/; alone, if given), the torch of
# AFT_PYTHON, Torch_DIR, CMAKE_PREFIX_PATH (torch.utils.cmake_prefix_path), without AFT_PYTHON the torch of python3.
# Gives:
#   AftTorch_VERSION     such as 2.13.0        AftTorch_BUILD   cpu, or the CUDA version such as 13.0
#   AftTorch_ROOT        the folder found      AftTorch_LIBRARY_DIR
#   AFT_PYTHON           the interpreter of the environment that the wheel lies in, if the one given has another torch

include(FindPackageHandleStandardArgs)

# The folder of a Python interpreter's torch, without importing it; empty if it has none. While pip builds, PYTHONPATH
# hides what is installed there, so it is asked once more without the environment's variables.
function(_aft_torch_of_python python result)
  set(folder "")
  foreach(flag -B -E)
    if(NOT folder)
      execute_process(
        COMMAND "${python}" ${flag} -c
                "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
        OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    endif()
  endforeach()
  set(${result} "${folder}" PARENT_SCOPE)
endfunction()

set(_aft_candidates "")
if(AFT_TORCH_ROOT)
  list(APPEND _aft_candidates "${AFT_TORCH_ROOT}")
else()
  if(AFT_PYTHON)
    _aft_torch_of_python("${AFT_PYTHON}" _aft_python_torch)
    list(APPEND _aft_candidates ${_aft_python_torch})
  endif()
  if(Torch_DIR)
    list(APPEND _aft_candidates "${Torch_DIR}/../../..")
  endif()
  string(REPLACE ":" ";" _aft_environment "$ENV{CMAKE_PREFIX_PATH}")
  foreach(_aft_prefix IN LISTS CMAKE_PREFIX_PATH _aft_environment)
    # torch.utils.cmake_prefix_path is <root>/share/cmake; a plain prefix is the root itself.
    list(APPEND _aft_candidates "${_aft_prefix}/../.." "${_aft_prefix}")
  endforeach()
  find_program(_aft_python3 python3 NO_CACHE)
  if(_aft_python3 AND NOT AFT_PYTHON)
    _aft_torch_of_python("${_aft_python3}" _aft_python_torch)
    list(APPEND _aft_candidates ${_aft_python_torch})
  endif()
endif()

set(AftTorch_ROOT "")
foreach(_aft_candidate IN LISTS _aft_candidates)
  if(NOT AftTorch_ROOT
     AND EXISTS "${_aft_candidate}/include/torch/csrc/api/include/torch/torch.h"
     AND EXISTS "${_aft_candidate}/lib/libtorch_cpu.so")
    get_filename_component(AftTorch_ROOT "${_aft_candidate}" REALPATH)
  endif()
endforeach()

# A wheel lies in <environment>/lib/python3.x/site-packages/torch.
get_filename_component(_aft_python "${AftTorch_ROOT}/../../../../bin/python3" ABSOLUTE)
if(AftTorch_ROOT AND EXISTS "${_aft_python}")
  set(_aft_python_torch "")
  if(AFT_PYTHON)
    _aft_torch_of_python("${AFT_PYTHON}" _aft_python_torch)
  endif()
  if(_aft_python_torch)
    get_filename_component(_aft_python_torch "${_aft_python_torch}" REALPATH)
  endif()
  if(NOT _aft_python_torch STREQUAL AftTorch_ROOT)
    set(AFT_PYTHON "${_aft_python}")
  endif()
endif()

if(AftTorch_ROOT)
  set(AftTorch_LIBRARY_DIR "${AftTorch_ROOT}/lib")
  foreach(_aft_header torch/headeronly/version.h torch/csrc/api/include/torch/version.h)
    if(NOT AftTorch_VERSION AND EXISTS "${AftTorch_ROOT}/include/${_aft_header}")
      file(READ "${AftTorch_ROOT}/include/${_aft_header}" _aft_text)
      if(_aft_text MATCHES "TORCH_VERSION[ \\\\\r\n]+\"([0-9]+\\.[0-9]+\\.[0-9]+)")
        set(AftTorch_VERSION "${CMAKE_MATCH_1}")
      endif()
    endif()
  endforeach()
  # Wheels name their build in version.py; what says nothing is taken for its libraries.
  set(AftTorch_BUILD cpu)
  if(EXISTS "${AftTorch_ROOT}/version.py")
    file(READ "${AftTorch_ROOT}/version.py" _aft_text)
    if(_aft_text MATCHES "\ncuda[^=\n]*= *'([^']+)'")
      set(AftTorch_BUILD "${CMAKE_MATCH_1}")
    endif()
  elseif(EXISTS "${AftTorch_LIBRARY_DIR}/libtorch_cuda.so")
    set(AftTorch_BUILD cuda)
  endif()
  # The std::string ABI of the libraries; wheels of the supported versions all have the new one.
  set(_aft_abi "")
  if(EXISTS "${AftTorch_ROOT}/share/cmake/Torch/TorchConfig.cmake")
    file(READ "${AftTorch_ROOT}/share/cmake/Torch/TorchConfig.cmake" _aft_text)
    if(_aft_text MATCHES "_GLIBCXX_USE_CXX11_ABI=([01])")
      set(_aft_abi "_GLIBCXX_USE_CXX11_ABI=${CMAKE_MATCH_1}")
    endif()
  endif()
  # at::parallel_for must run on the OpenMP threads that torch itself uses, so on torch's own copy of the library.
  file(GLOB _aft_openmp "${AftTorch_LIBRARY_DIR}/libgomp*.so*")
  if(NOT _aft_openmp)
    find_package(OpenMP REQUIRED COMPONENTS CXX)
    set(_aft_openmp ${OpenMP_gomp_LIBRARY})
  endif()
  list(GET _aft_openmp 0 AftTorch_OPENMP)
endif()

find_package_handle_standard_args(
  AftTorch
  REQUIRED_VARS AftTorch_ROOT AftTorch_VERSION
  VERSION_VAR AftTorch_VERSION
  REASON_FAILURE_MESSAGE
    "LibTorch was not found: install the wheel torch and pass -DAFT_PYTHON=<its Python>, or -DAFT_TORCH_ROOT=<the folder with include/ and lib/>")

if(AftTorch_FOUND AND NOT TARGET AftTorch::torch)
  add_library(AftTorch::c10 SHARED IMPORTED)
  set_target_properties(AftTorch::c10 PROPERTIES IMPORTED_LOCATION "${AftTorch_LIBRARY_DIR}/libc10.so")
  add_library(AftTorch::torch SHARED IMPORTED)
  set_target_properties(
    AftTorch::torch
    PROPERTIES IMPORTED_LOCATION "${AftTorch_LIBRARY_DIR}/libtorch_cpu.so"
               INTERFACE_INCLUDE_DIRECTORIES "${AftTorch_ROOT}/include;${AftTorch_ROOT}/include/torch/csrc/api/include"
               INTERFACE_COMPILE_DEFINITIONS "${_aft_abi}"
               INTERFACE_LINK_LIBRARIES AftTorch::c10)
endif()
