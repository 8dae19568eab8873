# Finds LibTorch: by -DTorch_DIR or -DCMAKE_PREFIX_PATH where given, else in the torch of AFT_PYTHON. Sets Torch_FOUND,
# Torch_VERSION, TORCH_INSTALL_PREFIX and the target `torch`.

# A build folder that has seen another torch forgets it.
if(DEFINED CACHE{AFT_PYTHON_TORCH_SEEN} AND NOT AFT_PYTHON_TORCH STREQUAL AFT_PYTHON_TORCH_SEEN)
  foreach(entry Torch_DIR Caffe2_DIR TORCH_LIBRARY c10_LIBRARY kineto_LIBRARY C10_CUDA_LIBRARY)
    unset(${entry} CACHE)
  endforeach()
endif()
set(AFT_PYTHON_TORCH_SEEN "${AFT_PYTHON_TORCH}" CACHE INTERNAL "The torch that this build folder was configured with")

# The wheel's package file warns of libraries that only a build of torch itself has.
set(CMAKE_MESSAGE_LOG_LEVEL ERROR)
if(AFT_PYTHON_TORCH)
  find_package(Torch QUIET HINTS ${AFT_PYTHON_TORCH})
else()
  find_package(Torch QUIET)
endif()
unset(CMAKE_MESSAGE_LOG_LEVEL)
