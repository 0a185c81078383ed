! sf.f90: the functions of sf.h for Fortran 2003 and later. Compile it with your
! own compiler, before what uses it, and link with -lsf. What a function does,
! its units and its errors are in sf.h; here are its types.
!
!     use sf
!     type(sf_ticket) :: ticket
!     type(sf_clone_info), pointer :: clones(:)
!     integer(c_int) :: id
!     if (sf_request_ticket(4, 0, ticket) < 0) error stop
!     clones => sf_clones(ticket)
!     id = sf_clone(ticket)
!
! Texts are arrays of characters that end with a NUL: sf_text makes a string of
! one, and a string that goes to C ends with c_null_char.
module sf
  use, intrinsic :: iso_c_binding
  implicit none
  public

  integer, parameter :: sf_id_size = 64, sf_name_size = 64, sf_ip_size = 48, sf_host_size = 256

  integer(c_int), parameter :: sf_einvalid = -1, sf_eunknown = -2, sf_erefused = -3, sf_estate = -4, &
    sf_eresources = -5, sf_efailed = -6, sf_elost = -7, sf_etimeout = -8, sf_ekilled = -9, &
    sf_ecloned = -10, sf_eversion = -11, sf_eunavailable = -12

  type, bind(c) :: sf_clone_info
    integer(c_int) :: id, vcpus
    character(kind=c_char) :: name(sf_name_size), ip(sf_ip_size), host(sf_host_size)
  end type

  type, bind(c) :: sf_ticket
    character(kind=c_char) :: id(sf_id_size), vm(sf_name_size)
    integer(c_int) :: asked, granted
    type(c_ptr) :: clones ! see sf_clones
  end type

  type, bind(c) :: sf_identity
    integer(c_int) :: id, member, vcpus
    character(kind=c_char) :: name(sf_name_size), ip(sf_ip_size), host(sf_host_size), ticket(sf_id_size)
  end type

  type, bind(c) :: sf_vm
    integer(c_int) :: id, member, parent
    character(kind=c_char) :: name(sf_name_size), ip(sf_ip_size), ticket(sf_id_size)
  end type

  interface
    integer(c_int) function sf_request_ticket(n, hierarchical, ticket) bind(c)
      import
      integer(c_int), value :: n, hierarchical
      type(sf_ticket), intent(out) :: ticket
    end function
    integer(c_int) function sf_request_ticket_vm(vm, n, hierarchical, vcpus, ticket) bind(c)
      import
      character(kind=c_char), intent(in) :: vm(*)
      integer(c_int), value :: n, hierarchical, vcpus
      type(sf_ticket), intent(out) :: ticket
    end function
    integer(c_int) function sf_get_ticket(id, ticket) bind(c)
      import
      character(kind=c_char), intent(in) :: id(*)
      type(sf_ticket), intent(out) :: ticket
    end function
    integer(c_int) function sf_get_ticket_vm(vm, id, ticket) bind(c)
      import
      character(kind=c_char), intent(in) :: vm(*), id(*)
      type(sf_ticket), intent(out) :: ticket
    end function
    subroutine sf_ticket_free(ticket) bind(c)
      import
      type(sf_ticket), intent(inout) :: ticket
    end subroutine
    integer(c_int) function sf_clone(ticket) bind(c)
      import
      type(sf_ticket), intent(in) :: ticket
    end function
    integer(c_int) function sf_checkpoint_parent(checkpoint, ticket) bind(c)
      import
      character(kind=c_char), intent(out) :: checkpoint(sf_id_size), ticket(sf_id_size)
    end function
    integer(c_int) function sf_checkpoint_vm(vm, checkpoint, ticket) bind(c)
      import
      character(kind=c_char), intent(in) :: vm(*)
      character(kind=c_char), intent(out) :: checkpoint(sf_id_size), ticket(sf_id_size)
    end function
    integer(c_int) function sf_create_clones(checkpoint, ticket) bind(c)
      import
      character(kind=c_char), intent(in) :: checkpoint(*)
      type(sf_ticket), intent(in) :: ticket
    end function
    integer(c_int) function sf_discard(checkpoint) bind(c)
      import
      character(kind=c_char), intent(in) :: checkpoint(*)
    end function
    integer(c_int) function sf_discard_vm(vm, checkpoint) bind(c)
      import
      character(kind=c_char), intent(in) :: vm(*), checkpoint(*)
    end function
    integer(c_int) function sf_exit(status) bind(c)
      import
      integer(c_int), value :: status
    end function
    integer(c_int) function sf_exit_vm(vm, status) bind(c)
      import
      character(kind=c_char), intent(in) :: vm(*)
      integer(c_int), value :: status
    end function
    ! timeout in seconds, negative for ever; statuses(i) is that of clones(i).
    integer(c_int) function sf_join(ticket, timeout, statuses) bind(c)
      import
      type(sf_ticket), intent(in) :: ticket
      real(c_double), value :: timeout
      integer(c_int), intent(out) :: statuses(*)
    end function
    integer(c_int) function sf_kill(ticket) bind(c)
      import
      type(sf_ticket), intent(in) :: ticket
    end function
    integer(c_int) function sf_kill_clone(ticket, id) bind(c)
      import
      type(sf_ticket), intent(in) :: ticket
      integer(c_int), value :: id
    end function
    integer(c_int) function sf_await_fork(ticket) bind(c)
      import
      character(kind=c_char), intent(out) :: ticket(sf_id_size)
    end function
    integer(c_int) function sf_whoami(identity) bind(c)
      import
      type(sf_identity), intent(out) :: identity
    end function
    integer(c_int) function sf_list_vms(vms, max) bind(c)
      import
      type(sf_vm), intent(out) :: vms(*)
      integer(c_int), value :: max
    end function
    type(c_ptr) function sf_errmsg_c() bind(c, name="sf_errmsg")
      import
    end function
    type(c_ptr) function sf_strerror_c(code) bind(c, name="sf_strerror")
      import
      integer(c_int), value :: code
    end function
    type(c_ptr) function sf_kind_c(code) bind(c, name="sf_kind")
      import
      integer(c_int), value :: code
    end function
  end interface

contains

  ! The clones of a ticket, valid until sf_ticket_free.
  function sf_clones(ticket) result(clones)
    type(sf_ticket), intent(in) :: ticket
    type(sf_clone_info), pointer :: clones(:)

    nullify (clones)
    if (c_associated(ticket%clones)) call c_f_pointer(ticket%clones, clones, [ticket%granted])
  end function

  ! The characters before the NUL.
  pure function sf_text(chars) result(text)
    character(kind=c_char), intent(in) :: chars(:)
    character(len=:), allocatable :: text
    integer :: i, length

    length = size(chars)
    do i = 1, size(chars)
      if (chars(i) == c_null_char) then
        length = i - 1
        exit
      end if
    end do
    allocate (character(len=length) :: text)
    do i = 1, length
      text(i:i) = chars(i)
    end do
  end function

  ! What the last error in this thread was.
  function sf_errmsg() result(text)
    character(len=:), allocatable :: text

    text = from_c(sf_errmsg_c())
  end function

  ! What a code means in general.
  function sf_strerror(code) result(text)
    integer(c_int), intent(in) :: code
    character(len=:), allocatable :: text

    text = from_c(sf_strerror_c(code))
  end function

  ! A code's word in the protocol.
  function sf_kind(code) result(text)
    integer(c_int), intent(in) :: code
    character(len=:), allocatable :: text

    text = from_c(sf_kind_c(code))
  end function

  function from_c(pointer_to_c) result(text)
    type(c_ptr), intent(in) :: pointer_to_c
    character(len=:), allocatable :: text
    character(kind=c_char), pointer :: chars(:)

    call c_f_pointer(pointer_to_c, chars, [1024]) ! sf_text reads up to the NUL
    text = sf_text(chars)
  end function
end module
