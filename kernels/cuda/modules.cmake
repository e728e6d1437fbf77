# The libraries that GPU devices live in. Their host code is C, their kernels are CUDA C.
#
#   libluna_emulated.so       the kernels compiled by g++, run by kernels/emulation/; for tests
#   race/libluna_emulated.so  the same with every access of a kernel checked for races
#   libluna_cuda.so           the kernels compiled by nvcc, where it is installed

file(GLOB GPU_HOST_SOURCES CONFIGURE_DEPENDS kernels/cuda/*.c)
list(FILTER GPU_HOST_SOURCES EXCLUDE REGEX "/driver_cuda[^/]*\\.c$")
list(APPEND GPU_HOST_SOURCES ${BASE_SOURCES} kernels/operation.c)
file(GLOB GPU_KERNEL_SOURCES CONFIGURE_DEPENDS kernels/cuda/*.cu)
file(GLOB EMULATION_SOURCES CONFIGURE_DEPENDS kernels/emulation/*.cpp)
list(FILTER EMULATION_SOURCES EXCLUDE REGEX "/race\\.cpp$")
list(APPEND EMULATION_SOURCES ${CMAKE_SOURCE_DIR}/kernels/cuda/driver_emulated.cpp
     ${CMAKE_SOURCE_DIR}/kernels/cuda/driver_emulated_loan.cpp
     ${CMAKE_SOURCE_DIR}/kernels/cuda/driver_emulated_blas.cpp)

# Fibers change stacks by hand, in assembly that is x86-64's; ThreadSanitizer cannot follow them.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND NOT LUNA_SANITIZE STREQUAL "thread"
   AND NOT LUNA_FUZZ)
  set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g")
  set(CMAKE_CXX_FLAGS_DEBUG "-O1 -g1")
  enable_language(CXX)
  set(EMULATION_OPTIONS -Wall -Wextra -Wshadow -Wno-unknown-pragmas -Werror)
  # Kernels run on the machine that compiles them, so they may use what it has.
  file(READ /proc/cpuinfo CPUINFO)
  if(CPUINFO MATCHES " fma .* avx2 ")
    list(APPEND EMULATION_OPTIONS -march=x86-64-v3)
  endif()

  function(luna_emulated name folder)
    add_library(${name} MODULE ${GPU_HOST_SOURCES} ${GPU_KERNEL_SOURCES} ${EMULATION_SOURCES} ${ARGN})
    target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR})
    target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:C>:${LUNA_WARNINGS}>
                           $<$<COMPILE_LANGUAGE:CXX>:${EMULATION_OPTIONS};-ftls-model=initial-exec>)
    target_link_libraries(${name} PRIVATE Threads::Threads m)
    target_link_options(${name} PRIVATE -Wl,--no-undefined)
    set_target_properties(${name} PROPERTIES OUTPUT_NAME luna_emulated CXX_STANDARD 17
                          CXX_EXTENSIONS OFF C_VISIBILITY_PRESET hidden
                          CXX_VISIBILITY_PRESET hidden LIBRARY_OUTPUT_DIRECTORY ${folder})
  endfunction()

  set_source_files_properties(${GPU_KERNEL_SOURCES} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
  luna_emulated(luna_emulated ${CMAKE_BINARY_DIR})
  if(LUNA_SANITIZE STREQUAL "address")
    # A module leaves the sanitizers' functions to the program that opens it.
    set_target_properties(luna_emulated PROPERTIES LINK_OPTIONS "")
  endif()
  if(LUNA_SANITIZE STREQUAL "")
    # Instrumented kernels call our own checks: the library is linked without the sanitizer.
    luna_emulated(luna_emulated_race ${CMAKE_BINARY_DIR}/race kernels/emulation/race.cpp)
    foreach(source ${GPU_KERNEL_SOURCES})
      set_property(SOURCE ${source} APPEND PROPERTY COMPILE_OPTIONS
        "$<$<STREQUAL:$<TARGET_PROPERTY:NAME>,luna_emulated_race>:-O1;-fsanitize=thread>")
    endforeach()
  endif()
endif()

# nvcc compiles once to the code that all these cards can take over and then for each of them. The
# option -fmad=false: nothing is fused that was not written so. The log tells registers and spills;
# tests/emulation/spills.py reads it for ./dev lint.
option(LUNA_CUDA "build libluna_cuda.so where nvcc is installed" ON)
set(LUNA_CUDA_CARDS 80 86 89 90a 120 CACHE STRING "compute capabilities that libluna_cuda.so has code for")
find_program(NVCC nvcc PATHS /usr/local/cuda/bin)
if(LUNA_CUDA AND NVCC AND LUNA_SANITIZE STREQUAL "" AND NOT LUNA_FUZZ)
  get_filename_component(CUDA_BIN ${NVCC} REALPATH)
  get_filename_component(CUDA_BIN ${CUDA_BIN} DIRECTORY)
  find_path(CUDA_INCLUDE cuda_runtime_api.h PATHS ${CUDA_BIN}/../include /usr/local/cuda/include)
  find_library(CUDA_RUNTIME cudart_static PATHS ${CUDA_BIN}/../lib64 ${CUDA_BIN}/../lib
               /usr/local/cuda/lib64)
endif()
if(CUDA_INCLUDE AND CUDA_RUNTIME)
  list(TRANSFORM LUNA_CUDA_CARDS PREPEND "sm_" OUTPUT_VARIABLE CUDA_CODES)
  list(JOIN CUDA_CODES "," CUDA_CODES)
  set(CUDA_FOLDER ${CMAKE_BINARY_DIR}/cuda)
  file(MAKE_DIRECTORY ${CUDA_FOLDER})
  foreach(source ${GPU_KERNEL_SOURCES})
    get_filename_component(name ${source} NAME_WE)
    set(codes "-gencode=arch=compute_80,code=[${CUDA_CODES}]")
    if(name MATCHES "wgmma$")
      # No other card has these instructions; kernels/cuda/device_gpu.c launches them on no other.
      set(codes "-gencode=arch=compute_90a,code=sm_90a")
    endif()
    set(object ${CUDA_FOLDER}/${name}.o)
    add_custom_command(
      OUTPUT ${object} ${CUDA_FOLDER}/${name}.log
      COMMAND ${NVCC} -std=c++17 -O3 -fmad=false -Werror all-warnings -Xcompiler
              -fPIC,-fvisibility=hidden,-Wall,-Wextra,-Werror,-Wno-unknown-pragmas
              "${codes}" -Xptxas -v -I${CMAKE_SOURCE_DIR}
              -c ${source} -o ${object} > ${CUDA_FOLDER}/${name}.log 2>&1
              || (cat ${CUDA_FOLDER}/${name}.log && false)
      DEPENDS ${source} kernels/cuda/gpu.h kernels/cuda/gpu_hopper.h kernels/cuda/elements.h
              kernels/cuda/tiles.h kernels/cuda/row.h kernels/cuda/convolution_tile.h
              kernels/cuda/multiply_tile.h
              kernels/cuda/launch.h kernels/cuda/driver.h
      COMMENT "nvcc ${name}")
    list(APPEND CUDA_OBJECTS ${object})
  endforeach()
  # Minutes of compilation: for those who ask for it (./dev build, ./dev lint), not for every test.
  add_library(luna_cuda MODULE EXCLUDE_FROM_ALL ${GPU_HOST_SOURCES} kernels/cuda/driver_cuda.c
              kernels/cuda/driver_cuda_card.c kernels/cuda/driver_cuda_loan.c
              kernels/cuda/driver_cuda_blas.c ${CUDA_OBJECTS})
  set_source_files_properties(${CUDA_OBJECTS} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  target_include_directories(luna_cuda PRIVATE ${CMAKE_SOURCE_DIR})
  target_include_directories(luna_cuda SYSTEM PRIVATE ${CUDA_INCLUDE})
  target_compile_options(luna_cuda PRIVATE ${LUNA_WARNINGS})
  target_link_libraries(luna_cuda PRIVATE ${CUDA_RUNTIME} Threads::Threads ${CMAKE_DL_LIBS} rt m stdc++)
  target_link_options(luna_cuda PRIVATE -Wl,--no-undefined -Wl,--exclude-libs,ALL)
  set_target_properties(luna_cuda PROPERTIES LINKER_LANGUAGE C C_VISIBILITY_PRESET hidden
                        LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
elseif(LUNA_SANITIZE STREQUAL "")
  message(STATUS "no nvcc: libluna_cuda.so is not built")
endif()
