# make_torch(<folder> <version> <cuda as in version.py>): a LibTorch whose headers and libraries are links to those of
# REAL_ROOT; what tells the builds apart is made up.
function(make_torch folder version cuda)
  file(MAKE_DIRECTORY ${folder}/include/torch/csrc/api ${folder}/include/torch/headeronly ${folder}/share/cmake/Torch)
  file(CREATE_LINK ${REAL_ROOT}/lib ${folder}/lib SYMBOLIC)
  file(CREATE_LINK ${REAL_ROOT}/include/torch/csrc/api/include ${folder}/include/torch/csrc/api/include SYMBOLIC)
  file(WRITE ${folder}/include/torch/headeronly/version.h "#define TORCH_VERSION \\\n  \"${version}\"\n")
  file(WRITE ${folder}/version.py "__version__ = '${version}'\ncuda: Optional[str] = ${cuda}\nhip = None\n")
  # What a CUDA build does on a machine without the toolkit.
  file(WRITE ${folder}/share/cmake/Torch/TorchConfig.cmake "message(FATAL_ERROR \"no CUDA toolkit\")\n")
endfunction()
